//! The renewal task: one per client. It renews leases when they are due, and marks those as lost
//! that were not renewed in time.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::{
    backend::lease::{BoxFuture, SessionId},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    lease::held_lease::{HeldLease, Renewal, Schedule, Session, State, nanos, renewal_due},
    panics::{contain, contained},
    signal::LossReason,
};

/// The number of renewals that run at a time. More would delay acquisitions and releases.
const AT_A_TIME: usize = 64;
/// Once the TTL divided by this is left, a renewal is sent even above that limit. This leaves time
/// for a retry, whatever the number of leases and the latency of the backend.
const SEND_AT_PART: u32 = 2;
/// A lease is late if it was not renewed when the TTL divided by this is left. A warning is then
/// logged.
const WARN_AT_PART: u32 = 4;
/// When one renewal is due, those due within the TTL divided by this are sent with it. Renewals
/// stay spread over a tenth of the TTL.
///
/// Measured: with 2 000 held leases on Redis, a process without it used 5.7 to 8.2 times the CPU
/// time (five interleaved rounds of `held`; 1.8 % against 0.3 % of a core).
const ALONG_PART: u32 = 100;
/// The delay after a failed renewal is the TTL divided by this, within these bounds.
const RETRY_PART: u32 = 20;
const RETRY_BOUNDS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The renewals that are running.
type Renewals = FuturesUnordered<BoxFuture<'static, (Renewed, Result<()>)>>;

enum Renewed {
    HeldLease(Arc<HeldLease>),
    Session(SessionId, Arc<HeldLease>),
}

/// Keeps a lease from now on, until it is released or lost.
pub(crate) fn keep(lease: &Arc<HeldLease>) {
    if lease.schedule.add(lease) {
        // `close` stops the task and waits for it.
        lease
            .context
            .spawn_tracked(Arc::clone(&lease.schedule).run());
    }
}

impl Schedule {
    async fn run(self: Arc<Self>) {
        let mut renewals = Renewals::new();
        while !self.stopped.is_cancelled() {
            // Foreign code is contained, so nothing in it should panic. If it does anyway, the
            // renewals of the other locks must continue.
            if let Err(error) = contained(self.step(&mut renewals)).await {
                contain(
                    || tracing::error!(target: "leasehold", %error, "the renewal task panicked and continues"),
                );
                tokio::time::sleep(RETRY_BOUNDS.0).await;
            }
        }
        // A backend must not see a dropped future. Renewals end by their timeouts at the latest.
        while renewals.next().await.is_some() {}
    }

    /// Starts the renewals that are due, then waits for the next event.
    async fn step(&self, renewals: &mut Renewals) -> Result<()> {
        let sleep = self.tick(renewals);
        tokio::select! {
            biased;
            () = self.stopped.cancelled() => {}
            () = self.wake.notified() => {}
            () = self.losses.notified() => self.collect_losses(),
            Some((renewed, outcome)) = renewals.next(), if !renewals.is_empty() => self.on_result(renewed, &outcome),
            () = tokio::time::sleep(sleep) => {}
        }
        Ok(())
    }

    /// Starts the renewals that are due and marks expired leases as lost. Returns the time until
    /// the next tick.
    fn tick(&self, renewals: &Renewals) -> Duration {
        let now = self.clock.now();
        let mut over = Vec::new();
        let (sleep, late) = {
            let mut state = self.lock();
            let late =
                state.due_holds(now, &mut over) | state.due_sessions(now, renewals, &mut over);
            state.start_renewals(now, renewals);
            let late = if late { state.late(now) } else { None };
            let next = state.next_due();
            let sleep = match next {
                // The next lease is likely to be added soon. Sleeping for a bounded time is cheaper
                // than a wake-up for each new lease.
                None if std::mem::take(&mut state.used) => state.longest_sleep(),
                None => Duration::MAX,
                Some(next) => Timestamp::from_nanos(next)
                    .since(now)
                    .min(state.longest_sleep()),
            };
            state.next_tick = (now + sleep).as_nanos();
            (sleep, late)
        };
        if let Some(late) = late {
            contain(|| late.warn(renewals.len()));
        }
        for held in over {
            held.lose(LossReason::Expired);
            held.after_loss();
        }
        // Within the range of tokio's timer. `wake` ends the sleep if a lease is added.
        sleep.min(Duration::from_secs(3600))
    }

    /// Schedules the next renewal, depending on the outcome of this one.
    fn on_result(&self, renewed: Renewed, outcome: &Result<()>) {
        let now = self.clock.now();
        self.lock().trouble = outcome
            .as_ref()
            .err()
            .filter(|error| !matches!(error.kind(), ErrorKind::Lost | ErrorKind::Revoked))
            .cloned();
        match renewed {
            Renewed::HeldLease(held) => {
                held.renewing.store(false, Ordering::Relaxed);
                let mut state = self.lock();
                if state
                    .holds
                    .remove(&(held.due.load(Ordering::Relaxed), held.id))
                    .is_some()
                {
                    let due = next_try(&held, outcome, now);
                    state.schedule(&held, due);
                }
            }
            Renewed::Session(id, held) => {
                let lost = outcome
                    .as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::Lost);
                let mut state = self.lock();
                let Some(session) = state.sessions.get_mut(&id) else {
                    return;
                };
                session.renewing = false;
                // Only this member is known to be lost: it may have been revoked alone, or released
                // meanwhile. The renewal of the next member shows whether the session has ended.
                let due = if lost {
                    now.as_nanos()
                } else {
                    next_try(&held, outcome, now)
                };
                session.due = due.min(session.first_expiry());
            }
        }
    }

    fn collect_losses(&self) {
        for held in self.all() {
            // Has no effect on leases that are not lost.
            held.after_loss();
        }
    }
}

impl State {
    fn next_due(&self) -> Option<u64> {
        let held = self.holds.first_key_value().map(|(&(due, _), _)| due);
        let ready = self.ready.first_key_value().map(|(&(latest, _), _)| latest);
        let session = self.sessions.values().map(|session| session.due).min();
        held.into_iter().chain(ready).chain(session).min()
    }

    /// Queues the renewals that are due and collects leases that have ended. Returns whether a
    /// lease is late.
    fn due_holds(&mut self, now: Timestamp, over: &mut Vec<Arc<HeldLease>>) -> bool {
        let mut lost = Vec::new();
        let mut late = false;
        while let Some(entry) = self
            .holds
            .first_entry()
            .filter(|entry| entry.key().0 <= now.as_nanos())
        {
            let held = entry.remove();
            if held.deadline().is_past(now) || !held.signal().is_live() {
                lost.push(held);
            } else {
                late |= is_late(&held, now);
                self.enqueue(&held, now);
            }
        }
        for held in lost {
            // Stays in the schedule until `after_loss` has removed it.
            self.schedule(&held, held.due.load(Ordering::Relaxed));
            over.push(held);
        }
        if !self.ready.is_empty() {
            self.coalesce_due(now);
        }
        late
    }

    /// Queues the renewals that are due soon, so that they are sent together with those that are
    /// due.
    fn coalesce_due(&mut self, now: Timestamp) {
        let soon = (now + self.shortest / ALONG_PART).as_nanos();
        let room = AT_A_TIME.saturating_sub(self.ready.len());
        let due_soon = self.holds.range(..=(soon, u64::MAX)).map(|(_, held)| held);
        let along = due_soon.filter(|held| {
            is_renewed(held) && held.signal().is_live() && !held.renewing.load(Ordering::Relaxed)
        });
        for held in along.take(room).cloned().collect::<Vec<_>>() {
            self.holds
                .remove(&(held.due.load(Ordering::Relaxed), held.id));
            self.enqueue(&held, now);
        }
    }

    /// Queues a renewal, unless one is running. The lease stays in the schedule, for the time when
    /// it is late and the time when it expires.
    fn enqueue(&mut self, held: &Arc<HeldLease>, now: Timestamp) {
        if is_renewed(held) && !held.renewing.swap(true, Ordering::Relaxed) {
            self.ready
                .insert((left_at(held, SEND_AT_PART), held.id), Arc::clone(held));
        }
        self.schedule(held, next_alarm(held, now));
    }

    /// Starts renewals up to the limit, and those that must be sent now.
    fn start_renewals(&mut self, now: Timestamp, renewals: &Renewals) {
        while let Some(entry) = self.ready.first_entry() {
            if renewals.len() >= AT_A_TIME && entry.key().0 > now.as_nanos() {
                return;
            }
            let held = entry.remove();
            if held.signal().is_live() {
                renewals.push(Box::pin(async move {
                    let outcome = contained(held.renew()).await;
                    (Renewed::HeldLease(held), outcome)
                }));
            }
        }
    }

    /// Starts the renewals of sessions that are due and collects leases that have ended. Returns
    /// whether a lease is late.
    fn due_sessions(
        &mut self,
        now: Timestamp,
        renewals: &Renewals,
        over: &mut Vec<Arc<HeldLease>>,
    ) -> bool {
        let mut late = false;
        for (&id, session) in &mut self.sessions {
            if session.due > now.as_nanos() {
                continue;
            }
            over.extend(
                session
                    .members
                    .values()
                    .filter(|held| held.deadline().is_past(now))
                    .cloned(),
            );
            // A member that was revoked has the earliest deadline. Its renewal reports this once,
            // and renews the session as well, which may be given another lock.
            let Some(held) = session
                .members
                .values()
                .filter(|held| !held.deadline().is_past(now))
                .min_by_key(|held| (held.is_revoked(), held.deadline()))
            else {
                continue;
            };
            late |= is_late(held, now);
            session.due = next_alarm(held, now).min(session.first_expiry());
            if !std::mem::replace(&mut session.renewing, true) {
                let renewed = Arc::clone(held);
                renewals.push(Box::pin(async move {
                    let outcome = contained(renewed.renew()).await;
                    (Renewed::Session(id, renewed), outcome)
                }));
            }
        }
        late
    }

    /// Returns the late locks, at most once per TTL.
    fn late(&mut self, now: Timestamp) -> Option<Late> {
        if now.as_nanos() < self.next_warning {
            return None;
        }
        self.next_warning = (now + self.shortest).as_nanos();
        let members = self
            .sessions
            .values()
            .flat_map(|session| session.members.values());
        let late: Vec<_> = self
            .holds
            .values()
            .chain(members)
            .filter(|held| is_late(held, now))
            .collect();
        Some(Late {
            first: Arc::clone(late.iter().min_by_key(|held| held.deadline())?),
            count: late.len(),
            waiting: self.ready.len(),
            trouble: self.trouble.clone(),
        })
    }
}

impl Session {
    /// Returns when the first member expires. A member that was revoked expires before its session.
    fn first_expiry(&self) -> u64 {
        let first = self.members.values().map(|held| held.deadline()).min();
        first.map_or(u64::MAX, |first| first.moment().as_nanos())
    }
}

/// Locks that will be lost unless they are renewed soon.
struct Late {
    first: Arc<HeldLease>,
    count: usize,
    /// The number of due renewals that are not yet sent.
    waiting: usize,
    trouble: Option<Error>,
}

impl Late {
    fn warn(&self, under_way: usize) {
        tracing::warn!(
            target: "leasehold",
            backend = self.first.context.capabilities.backend,
            locks = self.count,
            first = %self.first.request.key(),
            left = ?self.first.remaining(),
            under_way,
            waiting = self.waiting,
            error = self.trouble.as_ref().map(tracing::field::display),
            "renewals are late: these locks are lost unless they are renewed in time"
        );
    }
}

/// Returns the time at which the TTL divided by `part` is left.
fn left_at(held: &HeldLease, part: u32) -> u64 {
    held.deadline()
        .moment()
        .as_nanos()
        .saturating_sub(nanos(held.request.ttl().as_duration() / part))
}

/// Returns whether this task renews a lease. A session with a revoked member is still renewed, for
/// its other members.
fn is_renewed(held: &HeldLease) -> bool {
    held.renewal == Renewal::Automatic && !held.is_revoked()
}

fn is_late(held: &HeldLease, now: Timestamp) -> bool {
    is_renewed(held) && left_at(held, WARN_AT_PART) <= now.as_nanos()
}

/// Returns when to check a lease while its renewal is running: when it is late, then at its
/// deadline. This is later than `now` for every lease that has not expired.
fn next_alarm(held: &HeldLease, now: Timestamp) -> u64 {
    if is_renewed(held) && !is_late(held, now) {
        left_at(held, WARN_AT_PART)
    } else {
        held.deadline().moment().as_nanos()
    }
}

/// Returns when to renew again after a renewal with this outcome: at the deadline at the latest,
/// because an expiry must be noticed.
fn next_try(held: &HeldLease, outcome: &Result<()>, now: Timestamp) -> u64 {
    let deadline = held.deadline().moment().as_nanos();
    match outcome {
        Ok(()) => renewal_due(held, now),
        Err(_) => {
            let pause = (held.request.ttl().as_duration() / RETRY_PART)
                .clamp(RETRY_BOUNDS.0, RETRY_BOUNDS.1);
            (now + pause).as_nanos().min(deadline)
        }
    }
}

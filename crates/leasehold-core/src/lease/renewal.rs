//! [`Renewer`]: one task per client that renews leases when they are due, and marks those as lost
//! that were not renewed in time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;

use crate::{
    backend::{
        contract::{BoxFuture, KeepAlive, SessionId},
        request::Request,
    },
    client::asker::Asker,
    clock::{Clock, Timestamp},
    error::{Error, ErrorKind, Result},
    lease::{
        held_lease::{HeldLease, LONGEST_SLEEP},
        signal::LossReason,
    },
    lock::options::Renewal,
    mode::Mode,
    panics::{contain, contained},
};

/// The number of renewals that run at a time. More would delay acquisitions and releases.
const AT_A_TIME: usize = 64;
/// A renewal is sent in spite of that limit once the TTL divided by this is left. This leaves time
/// for a retry, whatever the number of leases and the latency of the backend.
const SEND_AT_PART: u32 = 2;
/// A lease is late if it was not renewed when the TTL divided by this is left. A warning is then
/// logged.
const WARN_AT_PART: u32 = 4;
/// A renewal starts after this part of the remaining time. The upper bound of a third leaves time
/// for two more attempts. The range spreads renewals, so that 10 000 leases that were acquired
/// together are not renewed together.
const RENEW_AFTER_PERMILLE: std::ops::Range<u64> = 200..333;
/// When one renewal is due, those due within the TTL divided by this are sent with it. With 10 000
/// leases on Redis, this saves a quarter of the CPU time. Renewals stay spread over a tenth of the
/// TTL.
const ALONG_PART: u32 = 100;
/// The delay after a failed renewal is the TTL divided by this, within these bounds.
const RETRY_PART: u32 = 20;
const RETRY_BOUNDS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

#[derive(Debug)]
pub(crate) struct Renewer {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Notified when a lease is due earlier than the task expects, or when the renewer stops.
    wake: Notify,
    /// Whether a caller waits until no lease is held. It is then notified by `emptied`.
    drains: AtomicBool,
    emptied: Notify,
    /// Notified when a backend reports a loss.
    pub(crate) losses: Arc<Notify>,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Leases with a renewal or a deadline of their own, ordered by when they are due.
    leases: BTreeMap<(u64, u64), Arc<HeldLease>>,
    sessions: HashMap<SessionId, Session>,
    /// Due renewals that wait because [`AT_A_TIME`] are under way, ordered by when they must be
    /// sent.
    ready: BTreeMap<(u64, u64), Arc<HeldLease>>,
    /// The error of the last renewal, if it failed.
    last_error: Option<Error>,
    /// When the log may warn of late renewals again.
    next_warning: u64,
    /// When the task wakes next. Removing a lease does not change it, so that an acquisition with
    /// its release causes no extra wake-up.
    next_tick: u64,
    /// Whether a lease was added since the last tick.
    used: bool,
    running: bool,
    /// The shortest TTL since the schedule was last empty. It bounds how long the task sleeps.
    shortest: Duration,
}

/// The leases that are renewed by one renewal of their session.
#[derive(Debug, Default)]
struct Session {
    members: HashMap<u64, Arc<HeldLease>>,
    due: u64,
    renewing: bool,
}

/// The renewals that are running.
type Renewals = FuturesUnordered<BoxFuture<'static, (Renewed, Result<()>)>>;

enum Renewed {
    HeldLease(Arc<HeldLease>),
    Session(SessionId, Arc<HeldLease>),
}

impl Renewer {
    pub(crate) fn new(clock: Arc<dyn Clock>, losses: Arc<Notify>) -> Self {
        Self {
            clock,
            state: Mutex::new(State {
                next_tick: u64::MAX,
                ..State::default()
            }),
            wake: Notify::new(),
            drains: AtomicBool::new(false),
            emptied: Notify::new(),
            losses,
            stopped: AtomicBool::new(false),
        }
    }

    /// Adds a lease, and starts the task if it is not running.
    pub(crate) fn add(self: &Arc<Self>, lease: &Arc<HeldLease>) {
        let now = self.clock.now();
        let start = {
            let mut state = self.lock();
            state.used = true;
            if state.leases.is_empty() && state.sessions.is_empty() {
                state.shortest = Duration::MAX;
            }
            state.shortest = state.shortest.min(lease.request.ttl().as_duration());
            let due = match (lease.renewal, lease.keep_alive) {
                (Renewal::Automatic, KeepAlive::Session(id)) => {
                    let session = state.sessions.entry(id).or_default();
                    if session.members.is_empty() {
                        session.due = renewal_due(lease, now);
                    }
                    session.members.insert(lease.id, Arc::clone(lease));
                    session.due
                }
                (Renewal::Automatic, KeepAlive::PerLease) => {
                    state.schedule(lease, renewal_due(lease, now))
                }
                (Renewal::Manual, _) => state.schedule(lease, lease.deadline().moment().as_nanos()),
            };
            if due < state.next_tick
                || now.as_nanos() + nanos(state.longest_sleep()) < state.next_tick
            {
                state.next_tick = due;
                self.wake.notify_one();
            }
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            // `close` stops the task and waits for it.
            lease.client.spawn_tracked(Arc::clone(self).run());
        }
    }

    /// Removes a lease. Returns whether it was present.
    pub(crate) fn remove(&self, lease: &Arc<HeldLease>) -> bool {
        let (kept, is_empty) = {
            let mut state = self.lock();
            (state.remove(lease), state.is_empty())
        };
        if kept && is_empty && self.drains.load(Ordering::Acquire) {
            self.emptied.notify_waiters();
        }
        kept
    }

    /// Waits until no lease is held.
    pub(crate) async fn emptied(&self) {
        self.drains.store(true, Ordering::Release);
        loop {
            // Created before the check, so that no change in between is missed.
            let emptied = self.emptied.notified();
            if self.lock().is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Returns all leases that are held.
    pub(crate) fn all(&self) -> Vec<Arc<HeldLease>> {
        let state = self.lock();
        let sessions = state
            .sessions
            .values()
            .flat_map(|session| session.members.values());
        state.leases.values().chain(sessions).cloned().collect()
    }

    /// Returns the mode in which `asker` already holds the key of this request, if it does.
    pub(crate) fn held_by(&self, asker: Asker, request: &Request) -> Option<Mode> {
        let (key, permit) = (request.key(), request.mode().is_permit());
        let leases = self.all();
        let own = |lease: &&Arc<HeldLease>| {
            lease.asker == asker && lease.request.key() == key && lease.is_held()
        };
        leases
            .iter()
            .filter(own)
            .map(|lease| lease.request.mode())
            .find(|mode| mode.is_permit() == permit)
    }

    /// Stops the task.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change under the mutex is left incomplete by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>) {
        let mut renewals = Renewals::new();
        while !self.stopped.load(Ordering::Acquire) {
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
                state.due_leases(now, &mut over) | state.due_sessions(now, renewals, &mut over);
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
        for lease in over {
            lease.lose(LossReason::Expired);
            lease.after_loss();
        }
        // Within the range of tokio's timer. `wake` ends the sleep if a lease is added.
        sleep.min(Duration::from_secs(3600))
    }

    /// Schedules the next renewal, depending on the outcome of this one.
    fn on_result(&self, renewed: Renewed, outcome: &Result<()>) {
        let now = self.clock.now();
        self.lock().last_error = outcome
            .as_ref()
            .err()
            .filter(|error| error.kind() != ErrorKind::Lost)
            .cloned();
        match renewed {
            Renewed::HeldLease(lease) => {
                lease.renewing.store(false, Ordering::Relaxed);
                let mut state = self.lock();
                if state
                    .leases
                    .remove(&(lease.due.load(Ordering::Relaxed), lease.id))
                    .is_some()
                {
                    let due = next_try(&lease, outcome, now);
                    state.schedule(&lease, due);
                }
            }
            Renewed::Session(id, lease) => {
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
                session.due = if lost {
                    now.as_nanos()
                } else {
                    next_try(&lease, outcome, now)
                };
            }
        }
    }

    fn collect_losses(&self) {
        for lease in self.all() {
            // Has no effect on leases that are not lost.
            lease.after_loss();
        }
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.sessions.is_empty()
    }

    /// Removes a lease. Returns whether it was present.
    fn remove(&mut self, lease: &HeldLease) -> bool {
        if self
            .leases
            .remove(&(lease.due.load(Ordering::Relaxed), lease.id))
            .is_some()
        {
            return true;
        }
        let KeepAlive::Session(id) = lease.keep_alive else {
            return false;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let kept = session.members.remove(&lease.id).is_some();
        if session.members.is_empty() {
            self.sessions.remove(&id);
        }
        kept
    }

    fn schedule(&mut self, lease: &Arc<HeldLease>, due: u64) -> u64 {
        lease.due.store(due, Ordering::Relaxed);
        self.leases.insert((due, lease.id), Arc::clone(lease));
        due
    }

    fn longest_sleep(&self) -> Duration {
        (self.shortest / 10).clamp(Duration::from_millis(1), LONGEST_SLEEP)
    }

    fn next_due(&self) -> Option<u64> {
        let lease = self.leases.first_key_value().map(|(&(due, _), _)| due);
        let ready = self.ready.first_key_value().map(|(&(latest, _), _)| latest);
        let session = self.sessions.values().map(|session| session.due).min();
        lease.into_iter().chain(ready).chain(session).min()
    }

    /// Queues the renewals that are due and collects leases that have ended. Returns whether a
    /// lease is late.
    fn due_leases(&mut self, now: Timestamp, over: &mut Vec<Arc<HeldLease>>) -> bool {
        let mut lost = Vec::new();
        let mut late = false;
        while let Some(entry) = self
            .leases
            .first_entry()
            .filter(|entry| entry.key().0 <= now.as_nanos())
        {
            let lease = entry.remove();
            if lease.deadline().is_past(now) || !lease.signal().is_live() {
                lost.push(lease);
            } else {
                late |= is_late(&lease, now);
                self.enqueue(&lease, now);
            }
        }
        for lease in lost {
            // Stays in the schedule until `after_loss` has removed it.
            self.schedule(&lease, lease.due.load(Ordering::Relaxed));
            over.push(lease);
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
        let due_soon = self
            .leases
            .range(..=(soon, u64::MAX))
            .map(|(_, lease)| lease);
        let along = due_soon.filter(|lease| {
            lease.renewal == Renewal::Automatic
                && lease.signal().is_live()
                && !lease.renewing.load(Ordering::Relaxed)
        });
        for lease in along.take(room).cloned().collect::<Vec<_>>() {
            self.leases
                .remove(&(lease.due.load(Ordering::Relaxed), lease.id));
            self.enqueue(&lease, now);
        }
    }

    /// Queues a renewal, unless one is running. The lease stays in the schedule, for the time when
    /// it is late and the time when it expires.
    fn enqueue(&mut self, lease: &Arc<HeldLease>, now: Timestamp) {
        if lease.renewal == Renewal::Automatic && !lease.renewing.swap(true, Ordering::Relaxed) {
            self.ready
                .insert((left_at(lease, SEND_AT_PART), lease.id), Arc::clone(lease));
        }
        self.schedule(lease, next_alarm(lease, now));
    }

    /// Starts renewals up to the limit, and those that must be sent now.
    fn start_renewals(&mut self, now: Timestamp, renewals: &Renewals) {
        while let Some(entry) = self.ready.first_entry() {
            if renewals.len() >= AT_A_TIME && entry.key().0 > now.as_nanos() {
                return;
            }
            let lease = entry.remove();
            if lease.signal().is_live() {
                renewals.push(Box::pin(async move {
                    let outcome = contained(lease.renew()).await;
                    (Renewed::HeldLease(lease), outcome)
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
                    .filter(|lease| lease.deadline().is_past(now))
                    .cloned(),
            );
            let Some(lease) = session
                .members
                .values()
                .find(|lease| !lease.deadline().is_past(now))
            else {
                continue;
            };
            late |= is_late(lease, now);
            session.due = next_alarm(lease, now);
            if !std::mem::replace(&mut session.renewing, true) {
                let renewed = Arc::clone(lease);
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
            .leases
            .values()
            .chain(members)
            .filter(|lease| is_late(lease, now))
            .collect();
        Some(Late {
            first: Arc::clone(late.iter().min_by_key(|lease| lease.deadline())?),
            count: late.len(),
            waiting: self.ready.len(),
            last_error: self.last_error.clone(),
        })
    }
}

/// Locks that will be lost unless they are renewed soon.
struct Late {
    first: Arc<HeldLease>,
    count: usize,
    /// The number of due renewals that are not yet sent.
    waiting: usize,
    last_error: Option<Error>,
}

impl Late {
    fn warn(&self, under_way: usize) {
        tracing::warn!(
            target: "leasehold",
            backend = self.first.client.capabilities.backend,
            locks = self.count,
            first = %self.first.request.key(),
            left = ?self.first.remaining(),
            under_way,
            waiting = self.waiting,
            error = self.last_error.as_ref().map(tracing::field::display),
            "renewals are late: these locks are lost unless they are renewed in time"
        );
    }
}

/// Returns the time at which the TTL divided by `part` is left.
fn left_at(lease: &HeldLease, part: u32) -> u64 {
    lease
        .deadline()
        .moment()
        .as_nanos()
        .saturating_sub(nanos(lease.request.ttl().as_duration() / part))
}

fn is_late(lease: &HeldLease, now: Timestamp) -> bool {
    lease.renewal == Renewal::Automatic && left_at(lease, WARN_AT_PART) <= now.as_nanos()
}

/// Returns when to check a lease while its renewal is running: when it is late, then at its
/// deadline.
fn next_alarm(lease: &HeldLease, now: Timestamp) -> u64 {
    if lease.renewal == Renewal::Automatic && !is_late(lease, now) {
        left_at(lease, WARN_AT_PART)
    } else {
        lease.deadline().moment().as_nanos()
    }
}

/// Returns when to renew a lease that was just granted or renewed.
fn renewal_due(lease: &HeldLease, now: Timestamp) -> u64 {
    let left = nanos(lease.deadline().remaining(now));
    // Any hash serves. Including the current time spreads each round differently.
    let mixed = (lease.id ^ now.as_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let (early, late) = (
        left / 1000 * RENEW_AFTER_PERMILLE.start,
        left / 1000 * RENEW_AFTER_PERMILLE.end,
    );
    now.as_nanos() + early + mixed % (late - early).max(1)
}

/// Returns when to renew again after a renewal with this outcome: at the deadline at the latest,
/// because an expiry must be noticed.
fn next_try(lease: &HeldLease, outcome: &Result<()>, now: Timestamp) -> u64 {
    let deadline = lease.deadline().moment().as_nanos();
    match outcome {
        Ok(()) => renewal_due(lease, now),
        Err(_) => {
            let pause = (lease.request.ttl().as_duration() / RETRY_PART)
                .clamp(RETRY_BOUNDS.0, RETRY_BOUNDS.1);
            (now + pause).as_nanos().min(deadline)
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

//! [`HeldLease`]: a lease that this process holds, and [`Schedule`]: all of them, by when they are due.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    asker::Asker,
    backend::{
        contained::ContainedLease,
        lease::{KeepAlive, SessionId},
        request::{Request, RequestContext},
    },
    clock::{AtomicDeadline, Clock, Deadline, Timestamp},
    context::ClientContext,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    lease::{
        complete_on_drop::CompleteOnDrop, detached_release::release_detached, grant::Grant,
        renewal_mode::Renewal,
    },
    local_queue::Place,
    mode::Mode,
    panics::contain,
    signal::{LossReason, Signal},
    telemetry::{self, Span, TracedOp},
};

/// A renewal starts when this much of the remaining time has passed: a third at the latest, so that
/// two more tries fit; spread, so that 10 000 leases taken together are not renewed together.
const RENEW_AFTER_PERMILLE: std::ops::Range<u64> = 200..333;
/// How often at least a wait for a deadline looks at the clock again: timers sleep through a
/// suspend, the clock does not.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct HeldLease {
    pub(crate) context: Arc<ClientContext>,
    pub(super) schedule: Arc<Schedule>,
    pub(crate) lease: ContainedLease,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) request: Request,
    pub(crate) renewal: Renewal,
    /// Who was granted it.
    pub(crate) asker: Asker,
    token: Option<FencingToken>,
    /// The deadline of a manually renewed lock whose lease lives as long as its session.
    limit: Option<AtomicDeadline>,
    place: Mutex<Option<Place>>,
    /// What its views know, once there is one.
    facts: OnceLock<Arc<Facts>>,
    /// Cancelled when it is lost; the parent of the tokens of its users.
    lost: OnceLock<CancellationToken>,
    /// How many guards share this hold (re-entrancy).
    guards: AtomicUsize,
    /// The place of this lease in the schedule.
    pub(crate) id: u64,
    pub(crate) due: AtomicU64,
    pub(crate) renewing: AtomicBool,
    span: Span,
    since: telemetry::StartTime,
}

/// What is known of a hold also when it is over.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) request: Request,
    pub(crate) token: Option<FencingToken>,
    deadline: OnceLock<Deadline>,
}

impl Facts {
    /// Its deadline, once it is over.
    pub(crate) fn last_deadline(&self) -> Deadline {
        self.deadline
            .get()
            .copied()
            .unwrap_or(Deadline::at(Timestamp::from_nanos(0)))
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if let Some(facts) = self.facts.get() {
            facts.deadline.get_or_init(|| self.deadline());
        }
    }
}

impl HeldLease {
    /// Turns a grant into a held lease.
    pub(crate) fn begin(
        mut grant: Grant<'_>,
        schedule: &Arc<Schedule>,
        renewal: Renewal,
    ) -> Arc<Self> {
        let (context, request, token, keep_alive) = (
            grant.context,
            grant.request.clone(),
            grant.token,
            grant.keep_alive,
        );
        let limit = match (renewal, keep_alive) {
            (Renewal::Manual, KeepAlive::Session(_)) => Some(AtomicDeadline::new(Deadline::at(
                request.now() + request.ttl().as_duration(),
            ))),
            _ => None,
        };
        let span = Span::of(|| {
            tracing::debug_span!(
                target: "leasehold",
                "hold",
                backend = context.capabilities.backend,
                key = %request.key(),
                mode = %request.mode(),
                token = token.map(FencingToken::get),
                outcome = tracing::field::Empty,
            )
        });
        let since = telemetry::hold_began(context);
        // Nothing between here and its owner can panic.
        let (lease, place) = grant.hand_over();
        Arc::new(Self {
            lease,
            keep_alive,
            renewal,
            asker: Asker::current(),
            token,
            limit,
            place: Mutex::new(place),
            facts: OnceLock::new(),
            lost: OnceLock::new(),
            guards: AtomicUsize::new(1),
            id: context.next_hold_id(),
            due: AtomicU64::new(0),
            renewing: AtomicBool::new(false),
            context: Arc::clone(context),
            schedule: Arc::clone(schedule),
            request,
            span,
            since,
        })
    }

    pub(crate) fn signal(&self) -> &Signal {
        self.request.signal()
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    pub(crate) fn facts(&self) -> &Arc<Facts> {
        self.facts.get_or_init(|| {
            Arc::new(Facts {
                request: self.request.clone(),
                token: self.token,
                deadline: OnceLock::new(),
            })
        })
    }

    /// A token that is cancelled when it is lost.
    pub(crate) fn cancellation_token(&self) -> CancellationToken {
        let lost = self.lost.get_or_init(CancellationToken::new);
        // It may have been lost before there was a token to cancel.
        if self.signal().loss().is_some() {
            lost.cancel();
        }
        lost.child_token()
    }

    pub(crate) fn deadline(&self) -> Deadline {
        let lease = self.lease.valid_until();
        self.limit
            .as_ref()
            .map_or(lease, |limit| limit.get().min(lease))
    }

    pub(crate) fn remaining(&self) -> Duration {
        let now = self.request.now();
        if self.signal().is_live() {
            self.deadline().remaining(now)
        } else {
            Duration::ZERO
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        // The clock first: see `AtomicDeadline::get`.
        let now = self.request.now();
        self.signal().is_live() && !self.deadline().is_past(now)
    }

    pub(crate) fn loss(self: &Arc<Self>) -> Option<LossReason> {
        if !self.is_held() && self.signal().is_live() {
            self.lose(LossReason::Expired);
        }
        self.signal().loss()
    }

    /// Completes when the hold is lost; with `None` when it is released.
    pub(crate) async fn ended(self: &Arc<Self>) -> Option<LossReason> {
        self.ended_before(Duration::ZERO).await
    }

    /// As [`ended`](Self::ended), but tells of the deadline this much early.
    pub(crate) async fn ended_before(self: &Arc<Self>, early: Duration) -> Option<LossReason> {
        let longest =
            (self.request.ttl().as_duration() / 10).clamp(Duration::from_millis(1), LONGEST_SLEEP);
        loop {
            let now = self.request.now();
            let left = self.deadline().remaining(now).saturating_sub(early);
            if left.is_zero() && self.signal().is_live() {
                if early.is_zero() {
                    self.lose(LossReason::Expired);
                } else {
                    return Some(LossReason::Expired);
                }
            }
            tokio::select! {
                biased;
                end = self.signal().ended() => return end,
                () = tokio::time::sleep(left.min(longest)) => {}
            }
        }
    }

    /// Renews now, whoever asks.
    pub(crate) async fn renew(self: &Arc<Self>) -> Result<()> {
        if let Some(reason) = self.loss() {
            return Err(self.lost_error(reason));
        }
        let renewed = self.renew_lease().await;
        telemetry::renewed(&self.context, &renewed);
        renewed
    }

    async fn renew_lease(self: &Arc<Self>) -> Result<()> {
        let traced = TracedOp::of(telemetry::renew_span(
            &self.span,
            &self.context,
            &self.request,
            self.token,
        ));
        let renewing = CompleteOnDrop::short(&self.context, self.lease.renew());
        let sent = self.request.now();
        let renewed = self.judge(sent, traced.span.around(renewing).await);
        traced.end(&renewed, "renewed");
        renewed
    }

    /// Takes the outcome of a renewal that was sent then.
    fn judge(self: &Arc<Self>, sent: Timestamp, renewed: Result<()>) -> Result<()> {
        match &renewed {
            Ok(()) => {
                if let Some(limit) = &self.limit {
                    let to = Deadline::at(sent + self.request.ttl().as_duration());
                    if !limit.advance(to, self.request.now()) {
                        self.lose(LossReason::Expired);
                        return Err(self.lost_error(LossReason::Expired));
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Lost => {
                let late = self.deadline().is_past(self.request.now());
                self.lose(if late {
                    LossReason::Expired
                } else {
                    LossReason::Replaced
                });
            }
            Err(error) => {
                self.span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not renewed"));
            }
        }
        renewed
    }

    fn lost_error(&self, reason: LossReason) -> Error {
        Error::new(
            ErrorKind::Lost,
            format!("the lock `{}` was lost: {reason}", self.request.key()),
        )
        .with_backend(self.context.capabilities.backend)
    }

    /// Marks the hold as lost and lets go of everything. The first reason counts; after a release
    /// nothing happens.
    pub(crate) fn lose(self: &Arc<Self>, reason: LossReason) {
        if self.signal().lose(reason) {
            self.after_loss();
        }
    }

    /// What follows a loss, whoever noticed it. Does its work once.
    pub(crate) fn after_loss(self: &Arc<Self>) {
        let Some(reason) = self.signal().loss() else {
            return;
        };
        if let Some(lost) = self.lost.get() {
            // Wakes whoever waits for it.
            contain(|| lost.cancel());
        }
        let was_kept = self.schedule.remove(self);
        // The next local waiter starts at once.
        drop(self.take_place());
        if was_kept {
            self.end();
            telemetry::lost(&self.context, reason);
            if reason == LossReason::ClientClosed {
                self.span.emit(|span| {
                    tracing::debug!(target: "leasehold", parent: span, "given back: the client closes");
                });
            } else {
                self.warn_of_loss(reason);
            }
            // The backend may still have it as ours: an early local deadline, or a session that
            // lives on.
            let (context, lease, span) = (
                Arc::clone(&self.context),
                self.lease.clone(),
                self.release_span(),
            );
            self.context
                .in_background(async move { release_detached(&context, lease, span).await });
        }
    }

    fn warn_of_loss(&self, reason: LossReason) {
        self.span.emit(|span| {
            tracing::warn!(
                target: "leasehold",
                parent: span,
                backend = self.context.capabilities.backend,
                key = %self.request.key(),
                token = self.token.map(FencingToken::get),
                %reason,
                "lock lost"
            );
        });
    }

    /// A span for a release of it.
    pub(crate) fn release_span(&self) -> Span {
        telemetry::release_span(&self.span, &self.context, &self.request, self.token)
    }

    /// It is held no longer. Called once: by its release or its loss, whichever is first.
    pub(crate) fn end(&self) {
        match self.signal().loss() {
            Some(reason) => telemetry::record_outcome(&self.span, tracing::field::display(reason)),
            None => telemetry::record_outcome(&self.span, "released"),
        }
        telemetry::hold_ended(&self.context, &self.since);
    }

    pub(crate) fn take_place(&self) -> Option<Place> {
        self.place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(crate) fn begin_release(&self) {
        if let Some(place) = &mut *self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            place.begin_release();
        }
    }

    /// Adds a guard to a hold that still has one.
    pub(crate) fn share(&self) -> bool {
        self.guards
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count > 0).then_some(count + 1)
            })
            .is_ok()
    }

    /// Takes a guard away; whether it was the last.
    pub(crate) fn unshare(&self) -> bool {
        self.guards.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// The held leases of a client, ordered by when they are due. The renewal task works through it.
///
/// It is here because a lease and its schedule know each other: a lease that ends leaves the
/// schedule.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) state: Mutex<State>,
    /// Something is due before the task thought.
    pub(super) wake: Notify,
    /// Whether somebody waits until nothing is held, and is told by `emptied`.
    pub(super) drains: AtomicBool,
    pub(super) emptied: Notify,
    /// A backend reported a loss.
    pub(crate) losses: Arc<Notify>,
    /// Cancelled when the task is to end.
    pub(super) stopped: CancellationToken,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Holds with a renewal or a deadline of their own, by when they are due.
    pub(super) holds: BTreeMap<(u64, u64), Arc<HeldLease>>,
    pub(super) sessions: HashMap<SessionId, Session>,
    /// Due renewals that wait because enough others are under way, ordered by when they must be
    /// sent.
    pub(super) ready: BTreeMap<(u64, u64), Arc<HeldLease>>,
    /// The error of the last renewal, if it failed.
    pub(super) trouble: Option<Error>,
    /// When the log may warn of late renewals again.
    pub(super) next_warning: u64,
    /// When the task will look again. Not changed when something is taken away: a pair costs no
    /// wake-up.
    pub(super) next_look: u64,
    /// Something was added since the task looked.
    pub(super) used: bool,
    pub(super) running: bool,
    /// The shortest TTL since there was nothing to keep; bounds how long the task sleeps.
    pub(super) shortest: Duration,
}

/// Holds that one renewal serves.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) members: HashMap<u64, Arc<HeldLease>>,
    pub(super) due: u64,
    pub(super) renewing: bool,
}

impl Schedule {
    pub(crate) fn new(requests: &RequestContext, stopped: CancellationToken) -> Self {
        Self {
            clock: Arc::clone(&requests.clock),
            state: Mutex::new(State {
                next_look: u64::MAX,
                ..State::default()
            }),
            wake: Notify::new(),
            drains: AtomicBool::new(false),
            emptied: Notify::new(),
            losses: Arc::clone(&requests.losses),
            stopped,
        }
    }

    /// Keeps a hold from now on. Returns whether the task must be started.
    pub(super) fn add(&self, hold: &Arc<HeldLease>) -> bool {
        let now = self.clock.now();
        let mut state = self.lock();
        state.used = true;
        if state.holds.is_empty() && state.sessions.is_empty() {
            state.shortest = Duration::MAX;
        }
        state.shortest = state.shortest.min(hold.request.ttl().as_duration());
        let due = match (hold.renewal, hold.keep_alive) {
            (Renewal::Automatic, KeepAlive::Session(id)) => {
                let session = state.sessions.entry(id).or_default();
                if session.members.is_empty() {
                    session.due = renewal_due(hold, now);
                }
                session.members.insert(hold.id, Arc::clone(hold));
                session.due
            }
            (Renewal::Automatic, KeepAlive::PerLease) => {
                state.schedule(hold, renewal_due(hold, now))
            }
            (Renewal::Manual, _) => state.schedule(hold, hold.deadline().moment().as_nanos()),
        };
        if due < state.next_look || now.as_nanos() + nanos(state.longest_sleep()) < state.next_look
        {
            state.next_look = due;
            self.wake.notify_one();
        }
        !std::mem::replace(&mut state.running, true)
    }

    /// Keeps a hold no longer; whether it was kept.
    pub(crate) fn remove(&self, hold: &Arc<HeldLease>) -> bool {
        let (kept, is_empty) = {
            let mut state = self.lock();
            (state.remove(hold), state.is_empty())
        };
        if kept && is_empty && self.drains.load(Ordering::Acquire) {
            self.emptied.notify_waiters();
        }
        kept
    }

    /// Waits until nothing is held.
    pub(crate) async fn emptied(&self) {
        self.drains.store(true, Ordering::Release);
        loop {
            // Made before it looks, so that no change in between is missed.
            let emptied = self.emptied.notified();
            if self.lock().is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Everything that is held.
    pub(crate) fn all(&self) -> Vec<Arc<HeldLease>> {
        let state = self.lock();
        let sessions = state
            .sessions
            .values()
            .flat_map(|session| session.members.values());
        state.holds.values().chain(sessions).cloned().collect()
    }

    /// In which mode the asker of this request holds its key, if it does.
    pub(crate) fn held_by(&self, asker: Asker, request: &Request) -> Option<Mode> {
        let (key, permit) = (request.key(), request.mode().is_permit());
        let holds = self.all();
        let own = |hold: &&Arc<HeldLease>| {
            hold.asker == asker && hold.request.key() == key && hold.is_held()
        };
        holds
            .iter()
            .filter(own)
            .map(|hold| hold.request.mode())
            .find(|mode| mode.is_permit() == permit)
    }

    /// Ends the task.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the mutex is complete when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.sessions.is_empty()
    }

    /// Removes a hold; whether it was there.
    pub(super) fn remove(&mut self, hold: &HeldLease) -> bool {
        if self
            .holds
            .remove(&(hold.due.load(Ordering::Relaxed), hold.id))
            .is_some()
        {
            return true;
        }
        let KeepAlive::Session(id) = hold.keep_alive else {
            return false;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let kept = session.members.remove(&hold.id).is_some();
        if session.members.is_empty() {
            self.sessions.remove(&id);
        }
        kept
    }

    pub(super) fn schedule(&mut self, hold: &Arc<HeldLease>, due: u64) -> u64 {
        hold.due.store(due, Ordering::Relaxed);
        self.holds.insert((due, hold.id), Arc::clone(hold));
        due
    }

    pub(super) fn longest_sleep(&self) -> Duration {
        (self.shortest / 10).clamp(Duration::from_millis(1), LONGEST_SLEEP)
    }
}

/// When to renew what is valid for as long as it is.
pub(super) fn renewal_due(hold: &HeldLease, now: Timestamp) -> u64 {
    let left = nanos(hold.deadline().remaining(now));
    // Any mixing will do; the present makes every round another spread.
    let mixed = (hold.id ^ now.as_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let (early, late) = (
        left / 1000 * RENEW_AFTER_PERMILLE.start,
        left / 1000 * RENEW_AFTER_PERMILLE.end,
    );
    now.as_nanos() + early + mixed % (late - early).max(1)
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

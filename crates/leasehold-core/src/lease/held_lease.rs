//! [`HeldLease`], a lease that this process holds, and [`Schedule`], all held leases ordered by
//! when they are due.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{
        lease::{ContainedLease, KeepAlive, SessionId},
        request::{Request, RequestContext},
    },
    clock::{AtomicDeadline, Clock, Deadline, Timestamp},
    context::ClientContext,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    key::LockKey,
    lease::{
        grant::{CompleteOnDrop, Grant, release_detached},
        record_writes::RecordWrites,
    },
    local_queue::Place,
    mode::Mode,
    panics::contain,
    runtime::Asker,
    signal::{LossReason, Signal},
    telemetry::{self, Span, TracedOp},
};

/// A renewal starts after this part of the remaining time. The upper bound of a third leaves time
/// for two more attempts. The range spreads renewals, so that 10 000 leases that were acquired
/// together are not renewed together.
const RENEW_AFTER_PERMILLE: std::ops::Range<u64> = 200..333;
/// The longest sleep of a wait for a deadline. The clock is read again after it, because timers
/// stand still while the machine is suspended and the clock does not.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The state of one granted lease.
#[derive(Debug)]
pub(crate) struct HeldLease {
    pub(crate) context: Arc<ClientContext>,
    pub(super) schedule: Arc<Schedule>,
    pub(crate) lease: ContainedLease,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) request: Request,
    pub(crate) renewal: Renewal,
    /// The task or thread that acquired the lock.
    pub(crate) asker: Asker,
    token: Option<FencingToken>,
    /// The deadline of a manually renewed lock, if its session keeps the lease valid for longer.
    limit: Option<AtomicDeadline>,
    place: Mutex<Option<Place>>,
    /// The state that views share. Set when the first view is created.
    facts: OnceLock<Arc<Facts>>,
    /// The parent of all cancellation tokens of this lease. Cancelled when the lease is lost.
    lost: OnceLock<CancellationToken>,
    /// The number of guards that share this lease through re-entrancy.
    guards: AtomicUsize,
    /// The key of this lease in the schedule, together with `due`.
    pub(crate) id: u64,
    pub(crate) due: AtomicU64,
    pub(crate) renewing: AtomicBool,
    /// Whether a renewal found that the lock was gracefully revoked.
    revoked: AtomicBool,
    /// Created by the first write of the record.
    record_writes: OnceLock<Arc<AsyncMutex<RecordWrites>>>,
    pub(super) span: Span,
    since: telemetry::StartTime,
}

/// The part of a lease's state that outlives it, for views.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) request: Request,
    pub(crate) token: Option<FencingToken>,
    deadline: OnceLock<Deadline>,
}

impl Facts {
    /// Returns the last deadline of a lease that has ended.
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
    /// Turns a grant into a held lease, and schedules its renewals.
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
        // No code between here and the owner of the lease can panic.
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
            revoked: AtomicBool::new(false),
            record_writes: OnceLock::new(),
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

    /// Returns a token that is cancelled when the lease is lost.
    pub(crate) fn cancellation_token(&self) -> CancellationToken {
        let lost = self.lost.get_or_init(CancellationToken::new);
        // The lease may have been lost before the token existed.
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
        // Read the clock before the deadline: see `AtomicDeadline::get`.
        let now = self.request.now();
        self.signal().is_live() && !self.deadline().is_past(now)
    }

    pub(crate) fn loss(self: &Arc<Self>) -> Option<LossReason> {
        if !self.is_held() && self.signal().is_live() {
            self.lose(LossReason::Expired);
        }
        self.signal().loss()
    }

    /// Completes when the lease is lost, or with `None` when it is released.
    pub(crate) async fn ended(self: &Arc<Self>) -> Option<LossReason> {
        self.ended_before(Duration::ZERO).await
    }

    /// Completes like [`ended`](Self::ended), but `early` before the deadline. The lease is then
    /// still held.
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

    /// Renews now, for the renewal task or for a caller of `renew`.
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
        let renewed = self.on_renewed(sent, traced.span.around(renewing).await);
        traced.end(&renewed, "renewed");
        renewed
    }

    /// Applies the outcome of a renewal that was sent at `sent`.
    fn on_renewed(self: &Arc<Self>, sent: Timestamp, renewed: Result<()>) -> Result<()> {
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
                self.lose_to_backend();
            }
            Err(error) if error.kind() == ErrorKind::Revoked => {
                if !self.revoked.swap(true, Ordering::Relaxed) {
                    self.warn_of_revocation();
                }
            }
            Err(error) => {
                self.span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not renewed"));
            }
        }
        renewed
    }

    /// Returns an error if the lease was lost or released.
    pub(super) fn check_held(self: &Arc<Self>) -> Result<()> {
        match self.loss() {
            Some(reason) => Err(self.lost_error(reason)),
            None if self.signal().is_live() => Ok(()),
            None => {
                Err(released_error(self.request.key())
                    .with_backend(self.context.capabilities.backend))
            }
        }
    }

    /// Returns the turn of the next write of the record.
    pub(super) fn record_writes(&self) -> &Arc<AsyncMutex<RecordWrites>> {
        self.record_writes.get_or_init(Arc::default)
    }

    /// Marks the lease as lost, because the backend no longer has the lock of this lease.
    pub(super) fn lose_to_backend(self: &Arc<Self>) {
        let late = self.deadline().is_past(self.request.now());
        self.lose(if late {
            LossReason::Expired
        } else {
            LossReason::Replaced
        });
    }

    fn lost_error(&self, reason: LossReason) -> Error {
        lost_error(self.request.key(), reason).with_backend(self.context.capabilities.backend)
    }

    /// Marks the lease as lost and cleans up. Has no effect if the lease is already lost or
    /// released.
    pub(crate) fn lose(self: &Arc<Self>, reason: LossReason) {
        if self.signal().lose(reason) {
            self.after_loss();
        }
    }

    /// Cleans up after a loss: notifies waiters, stops renewals, and releases the lock in the
    /// background. Only the first call has an effect.
    pub(crate) fn after_loss(self: &Arc<Self>) {
        let Some(reason) = self.signal().loss() else {
            return;
        };
        if let Some(lost) = self.lost.get() {
            // This runs the wakers of foreign code, which may panic.
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
                    tracing::debug!(target: "leasehold", parent: span, "released: the client closes");
                });
            } else {
                self.warn_of_loss(reason);
            }
            // The backend may still have the lock: the local deadline is earlier than the
            // server's, and the session may still be alive.
            let (context, lease, span) = (
                Arc::clone(&self.context),
                self.lease.clone(),
                self.release_span(),
            );
            self.context
                .in_background(async move { release_detached(&context, lease, None, span).await });
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

    fn warn_of_revocation(&self) {
        self.span.emit(|span| {
            tracing::warn!(
                target: "leasehold",
                parent: span,
                backend = self.context.capabilities.backend,
                key = %self.request.key(),
                token = self.token.map(FencingToken::get),
                left = ?self.remaining(),
                "lock revoked: it is held until its deadline"
            );
        });
    }

    /// Returns whether the lock is known to have been gracefully revoked. It is then not renewed.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// Creates a span for a release of this lease.
    pub(crate) fn release_span(&self) -> Span {
        telemetry::release_span(&self.span, &self.context, &self.request, self.token)
    }

    /// Records that the lease has ended. Called once, by its release or its loss.
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

    /// Adds a guard. Returns `false` if the last guard is already gone.
    pub(crate) fn share(&self) -> bool {
        self.guards
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count > 0).then_some(count + 1)
            })
            .is_ok()
    }

    /// Removes a guard. Returns whether it was the last.
    pub(crate) fn unshare(&self) -> bool {
        self.guards.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Returns the error of an operation on a lease that was lost.
pub(crate) fn lost_error(key: &LockKey, reason: LossReason) -> Error {
    Error::new(
        ErrorKind::Lost,
        format!("the lock `{key}` was lost: {reason}"),
    )
}

/// Returns the error of an operation on a lease that was released.
pub(crate) fn released_error(key: &LockKey) -> Error {
    Error::new(ErrorKind::Lost, format!("the lock `{key}` was released"))
}

/// The way in which a lease is renewed.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Renewal;
///
/// let mutex = client.mutex("item/42").with_renewal(Renewal::Manual);
/// let guard = mutex.lock().await?;
/// guard.renew().await?; // or the lock is released at its deadline
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Renewal {
    /// The client renews the lease until its guard is dropped. If a guard is leaked
    /// (`mem::forget`), its lock is held until the process ends.
    #[default]
    Automatic,
    /// The owner of the guard calls [`LockGuard::renew`](crate::LockGuard::renew). A lease that is
    /// not renewed is released at its deadline.
    Manual,
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
    /// Whether a caller waits until no lease is held. It is then notified by `emptied`.
    pub(super) drains: AtomicBool,
    pub(super) emptied: Notify,
    /// Notified when a backend reports a loss.
    pub(crate) losses: Arc<Notify>,
    /// Cancelled when the task is to end.
    pub(super) stopped: CancellationToken,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Leases with a renewal or a deadline of their own, ordered by when they are due.
    pub(super) holds: BTreeMap<(u64, u64), Arc<HeldLease>>,
    pub(super) sessions: HashMap<SessionId, Session>,
    /// Due renewals that wait because enough others are under way, ordered by when they must be
    /// sent.
    pub(super) ready: BTreeMap<(u64, u64), Arc<HeldLease>>,
    /// The error of the last renewal, if it failed.
    pub(super) trouble: Option<Error>,
    /// When the log may warn of late renewals again.
    pub(super) next_warning: u64,
    /// When the task wakes next. Removing a lease does not change it, so that an acquisition with
    /// its release causes no extra wake-up.
    pub(super) next_tick: u64,
    /// Whether a lease was added since the last tick.
    pub(super) used: bool,
    pub(super) running: bool,
    /// The shortest TTL since the schedule was last empty. It bounds how long the task sleeps.
    pub(super) shortest: Duration,
}

/// The leases that are renewed by one renewal of their session.
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
                next_tick: u64::MAX,
                ..State::default()
            }),
            wake: Notify::new(),
            drains: AtomicBool::new(false),
            emptied: Notify::new(),
            losses: Arc::clone(&requests.losses),
            stopped,
        }
    }

    /// Adds a lease, and starts the task if it is not running. Returns whether the task must be
    /// started.
    pub(super) fn add(&self, held: &Arc<HeldLease>) -> bool {
        let now = self.clock.now();
        let mut state = self.lock();
        state.used = true;
        if state.holds.is_empty() && state.sessions.is_empty() {
            state.shortest = Duration::MAX;
        }
        state.shortest = state.shortest.min(held.request.ttl().as_duration());
        let due = match (held.renewal, held.keep_alive) {
            (Renewal::Automatic, KeepAlive::Session(id)) => {
                let session = state.sessions.entry(id).or_default();
                if session.members.is_empty() {
                    session.due = renewal_due(held, now);
                }
                session.members.insert(held.id, Arc::clone(held));
                session.due
            }
            (Renewal::Automatic, KeepAlive::PerLease) => {
                state.schedule(held, renewal_due(held, now))
            }
            (Renewal::Manual, _) => state.schedule(held, held.deadline().moment().as_nanos()),
        };
        if due < state.next_tick || now.as_nanos() + nanos(state.longest_sleep()) < state.next_tick
        {
            state.next_tick = due;
            self.wake.notify_one();
        }
        !std::mem::replace(&mut state.running, true)
    }

    /// Removes a lease. Returns whether it was present.
    pub(crate) fn remove(&self, held: &Arc<HeldLease>) -> bool {
        let (kept, is_empty) = {
            let mut state = self.lock();
            (state.remove(held), state.is_empty())
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
        state.holds.values().chain(sessions).cloned().collect()
    }

    /// Returns the mode in which `asker` already holds the key of this request, if it does.
    pub(crate) fn held_by(&self, asker: Asker, request: &Request) -> Option<Mode> {
        let (key, permit) = (request.key(), request.mode().is_permit());
        let holds = self.all();
        let own = |held: &&Arc<HeldLease>| {
            held.asker == asker && held.request.key() == key && held.is_held()
        };
        holds
            .iter()
            .filter(own)
            .map(|held| held.request.mode())
            .find(|mode| mode.is_permit() == permit)
    }

    /// Stops the task.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No change under the mutex is left incomplete by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.sessions.is_empty()
    }

    /// Removes a lease. Returns whether it was present.
    pub(super) fn remove(&mut self, held: &HeldLease) -> bool {
        if self
            .holds
            .remove(&(held.due.load(Ordering::Relaxed), held.id))
            .is_some()
        {
            return true;
        }
        let KeepAlive::Session(id) = held.keep_alive else {
            return false;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let kept = session.members.remove(&held.id).is_some();
        if session.members.is_empty() {
            self.sessions.remove(&id);
        }
        kept
    }

    pub(super) fn schedule(&mut self, held: &Arc<HeldLease>, due: u64) -> u64 {
        held.due.store(due, Ordering::Relaxed);
        self.holds.insert((due, held.id), Arc::clone(held));
        due
    }

    pub(super) fn longest_sleep(&self) -> Duration {
        (self.shortest / 10).clamp(Duration::from_millis(1), LONGEST_SLEEP)
    }
}

/// Returns when to renew a lease that was just granted or renewed.
pub(super) fn renewal_due(held: &HeldLease, now: Timestamp) -> u64 {
    let left = nanos(held.deadline().remaining(now));
    // Any hash serves. Including the current time spreads each round differently.
    let mixed = (held.id ^ now.as_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let (early, late) = (
        left / 1000 * RENEW_AFTER_PERMILLE.start,
        left / 1000 * RENEW_AFTER_PERMILLE.end,
    );
    now.as_nanos() + early + mixed % (late - early).max(1)
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

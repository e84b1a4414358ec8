//! [`MemoryBackend`]: locks between the tasks of one process.

use std::{
    fmt,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leasehold_core::{
    Capabilities, Clock, ClockDrift, Error, Expiry, Fairness, Fencing, FencingToken, HolderRef,
    Inspection, LockKey, LossDetection, Pong, Records, Restart, Result, Revocation, RevokeOutcome,
    SystemClock, WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, RecordRead, RecordReading, Request, async_trait,
    },
};

use super::{
    admin,
    error::{ERRORS, cancelled},
    grant::{Grant, Issuer, NO_FLOOR},
    lease::MemoryLease,
    lock_entry::LockEntry,
    records,
    state::State,
    table::Table,
    waiters::{Progress, WaiterGuard},
    wall_clock::WallClock,
};

/// The time that a yielding request leaves to callers that retry on their own.
const YIELD_RETRY: Duration = Duration::from_millis(5);

/// A backend for locks between the tasks of one process.
///
/// It is the default for a program that runs once, a test double for a server backend, and the
/// reference for authors of backends. It has a queue, expiry and fencing tokens, as a server has.
/// Two `MemoryBackend`s share no locks: share one backend in an [`Arc`].
///
/// - It supports all modes. Waiters are served strictly in order. No acquisition overtakes the
///   queue, not even `try_acquire`.
/// - Grants expire by the backend's [clock](Self::with_clock). Expiry notifies the waiters, and
///   nothing polls.
/// - Fencing tokens start at 1 in each backend and grow over all its keys. They are valid for
///   resources that live as long as the process ([`Fencing::UntilDataLoss`]).
/// - [Records](leasehold_core::Record) live as long as the backend, and their watches are notified.
/// - It is a [`QuorumNode`](leasehold_core::quorum::QuorumNode), so several backends form a quorum
///   for tests.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::{LockKey, Released, backend::{Attempt, LockBackend, Request}};
/// use leasehold_local::MemoryBackend;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> leasehold_core::Result<()> {
/// let backend = Arc::new(MemoryBackend::new());
/// let request = Request::new(LockKey::new("item/42")?);
/// let Attempt::Granted(lease) = backend.clone().try_acquire(request).await? else {
///     panic!("the lock is free");
/// };
/// assert_eq!(lease.fencing_token().map(|token| token.get()), Some(1));
/// assert_eq!(lease.release().await?, Released::Freed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MemoryBackend {
    pub(super) state: Arc<State>,
}

impl MemoryBackend {
    /// Creates a backend on the [`SystemClock`].
    #[must_use]
    pub fn new() -> Self {
        Self::on(Arc::new(SystemClock), WallClock::System)
    }

    /// Creates a backend whose grants expire by `clock`. Give the client the same clock. The wall
    /// clock of the backend, which its records show, starts at the present time and advances with
    /// `clock`.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let wall_clock = WallClock::From {
            time: SystemTime::now(),
            at: clock.now(),
        };
        Self::on(clock, wall_clock)
    }

    fn on(clock: Arc<dyn Clock>, wall_clock: WallClock) -> Self {
        Self {
            state: Arc::new(State {
                table: Table::new(),
                issuer: Issuer::new(clock),
                wall_clock,
            }),
        }
    }

    fn lease(&self, grant: Arc<Grant>) -> Arc<dyn Lease> {
        Arc::new(MemoryLease::new(Arc::clone(&self.state), grant))
    }

    /// Makes one attempt.
    pub(super) fn attempt(
        &self,
        entry: &mut LockEntry,
        request: &Request,
        token_floor: FencingToken,
    ) -> Result<Attempt> {
        if let Some(grant) = entry.try_grant(request, token_floor, &self.state.issuer)? {
            return Ok(Attempt::Granted(self.lease(grant)));
        }
        Ok(Attempt::Contended(Contention {
            retry_after: entry
                .holders
                .first_expiry()
                .map(|expiry| expiry.since(self.state.issuer.now())),
            last_token: entry.last_token,
            wake: request.waiting().keeps_waiting.then(|| {
                let watcher =
                    WaiterGuard::as_watcher(Arc::clone(&self.state), entry, request.clone());
                Box::pin(async move { watcher.waiter.notify.notified().await }) as _
            }),
        }))
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ERRORS.backend())
    }
}

#[async_trait]
impl LockBackend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(ERRORS.backend());
        capabilities.shared = true;
        capabilities.permits = true;
        capabilities.expiry = Expiry::Server;
        capabilities.drift = ClockDrift::NONE;
        capabilities.fencing = Fencing::UntilDataLoss;
        capabilities.fairness = Fairness::Fifo;
        capabilities.waiter_notification = WaiterNotification::Pushed;
        capabilities.loss_detection = LossDetection::Pushed;
        capabilities.restart = Restart::EndsHolders;
        capabilities.pipelined_release = true;
        capabilities.inspect = true;
        capabilities.revoke = true;
        capabilities.records = Records::UntilDataLoss;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.state
            .with_entry(&request, |entry| self.attempt(entry, &request, NO_FLOOR))
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        if request.is_cancelled() {
            return Err(cancelled());
        }
        let has_no_watchers = |entry: &mut LockEntry| entry.watchers.is_empty();
        if request.waiting().yields && !self.state.with_entry(&request, has_no_watchers) {
            // A watcher has no place in the queue. It gets this time for its next attempt.
            tokio::select! {
                () = tokio::time::sleep(YIELD_RETRY) => {}
                () = request.cancelled() => return Err(cancelled()),
            }
        }
        let entered = self.state.with_entry(&request, |entry| {
            Ok::<_, Error>(
                match entry.try_grant(&request, NO_FLOOR, &self.state.issuer)? {
                    Some(grant) => ControlFlow::Break(grant),
                    None => ControlFlow::Continue(WaiterGuard::in_queue(
                        Arc::clone(&self.state),
                        entry,
                        request.clone(),
                    )),
                },
            )
        })?;
        let mut waiting = match entered {
            ControlFlow::Break(grant) => return Ok(self.lease(grant)),
            ControlFlow::Continue(waiting) => {
                request.set_contended();
                waiting
            }
        };
        loop {
            let wait = match waiting.progress()? {
                Progress::Granted(grant) => return Ok(self.lease(grant)),
                Progress::Pending(wait) => wait,
            };
            tokio::select! {
                () = waiting.waiter.notify.notified() => {}
                () = request.cancelled() => return Err(cancelled()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        Ok(admin::inspect(&self.state, key))
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        Ok(admin::revoke(&self.state, holder, revocation))
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        Ok(records::read(&self.state, &read))
    }

    /// Always succeeds.
    async fn ping(&self) -> Result<Pong> {
        Ok(Pong::new())
    }

    /// Does nothing, because other clients may share the backend.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use leasehold_core::Mode;

    use super::*;

    #[tokio::test]
    async fn unused_keys_cost_nothing() {
        let backend = Arc::new(MemoryBackend::new());
        for n in 0..1_000 {
            let request = Request::new(LockKey::new(format!("key/{n}")).unwrap());
            let Attempt::Granted(lease) =
                backend.clone().try_acquire(request.clone()).await.unwrap()
            else {
                panic!("free")
            };
            assert_eq!(backend.state.table.len(), 1);
            assert!(matches!(
                backend.clone().try_acquire(request).await.unwrap(),
                Attempt::Contended(_)
            ));
            lease.release().await.unwrap();
            assert_eq!(backend.state.table.len(), 0);
        }
    }

    #[tokio::test]
    async fn cost_of_an_operation_does_not_grow_with_holders() {
        let backend = Arc::new(MemoryBackend::new());
        let key = LockKey::new("key").unwrap();
        for mode in [
            Mode::Shared,
            Mode::Permit {
                of: std::num::NonZeroU32::new(10_000).unwrap(),
            },
        ] {
            let request = || Request::new(key.clone()).with_mode(mode);
            let visited = || {
                backend
                    .state
                    .table
                    .with_entry(&key, mode, |entry| entry.holders.visited())
            };
            let mut leases = Vec::new();
            for _ in 0..1_000 {
                leases.push(Arc::clone(&backend).acquire(request()).await.unwrap());
            }
            let before = visited();
            for lease in &leases {
                Arc::clone(lease).renew().await.unwrap();
            }
            let another = Arc::clone(&backend).acquire(request()).await.unwrap();
            let refused = Request::new(key.clone()).with_mode(Mode::Exclusive);
            for lease in leases.drain(1..) {
                if mode == Mode::Shared {
                    let refused = Arc::clone(&backend)
                        .try_acquire(refused.clone())
                        .await
                        .unwrap();
                    assert!(matches!(refused, Attempt::Contended(_)));
                }
                lease.release().await.unwrap();
            }
            let looks = visited() - before;
            assert!(
                before <= 10_000 && looks <= 20_000,
                "{mode}: 1 000 holders looked at {before} and {looks}"
            );
            another.release().await.unwrap();
            leases.remove(0).release().await.unwrap();
            assert_eq!(backend.state.table.len(), 0);
        }
    }
}

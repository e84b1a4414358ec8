//! [`MemoryBackend`]: locks between the tasks of one process.

use std::{fmt, ops::ControlFlow, sync::Arc, time::Duration};

use leasehold_core::{
    AcquisitionId, Capabilities, Clock, ClockDrift, Error, ErrorKind, Expiry, Fairness, Fencing,
    FencingToken, HolderRef, Inspection, LockKey, LossDetection, LossReason, Mode, Pong, Restart,
    Result, Revocation, RevokeOutcome, SystemClock, WaiterNotification, WaiterRef,
    backend::{Attempt, Contention, Lease, LockBackend, Request, async_trait},
};

use super::{
    grant::{Grant, Issuer, NO_FLOOR},
    lease::MemoryLease,
    slot::Slot,
    table::Table,
    waiter::{Turn, WaiterGuard},
};

pub(super) const NAME: &str = "memory";

/// How long a yielding request lets those go first who wait by attempts.
const YIELD_RETRY: Duration = Duration::from_millis(5);

/// Locks between the tasks of one process, with everything that a server would do: queue, expiry,
/// fencing tokens.
///
/// It is the default for a program that runs once, the test double for one that does not, and the
/// reference for authors of backends. Two backends know nothing of each other: share one, in an
/// [`Arc`].
///
/// - All modes. Waiters are served strictly in order; nobody overtakes them, not even a
///   `try_acquire`.
/// - Grants expire by the [clock](Self::with_clock) and wake who waits; nothing polls.
/// - Fencing tokens start at 1 in each backend and grow over all its keys, so they are good for
///   what lives and dies with the process: [`Fencing::UntilAmnesia`].
/// - It is a [`QuorumNode`](leasehold_core::quorum::QuorumNode), so several of these make a quorum
///   for tests.
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
/// let Attempt::Granted(lease) = backend.clone().try_acquire(request).await? else { panic!("nobody holds it") };
/// assert_eq!(lease.fencing_token().map(|token| token.get()), Some(1));
/// assert_eq!(lease.release().await?, Released::Freed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MemoryBackend {
    pub(super) table: Table,
    pub(super) issuer: Issuer,
}

impl MemoryBackend {
    /// A backend on the [`SystemClock`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// A backend whose grants expire by this clock. Give the client the same one.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            table: Table::new(),
            issuer: Issuer::new(clock),
        }
    }

    fn lease(self: Arc<Self>, grant: Arc<Grant>) -> Arc<dyn Lease> {
        Arc::new(MemoryLease::new(self, grant))
    }

    /// Makes one attempt.
    pub(super) fn attempt(
        self: Arc<Self>,
        slot: &mut Slot,
        request: &Request,
        token_floor: FencingToken,
    ) -> Result<Attempt> {
        if let Some(grant) = slot.try_grant(request, token_floor, &self.issuer)? {
            return Ok(Attempt::Granted(self.lease(grant)));
        }
        Ok(Attempt::Contended(Contention {
            retry_after: slot
                .holders
                .first_expiry()
                .map(|expiry| expiry.since(self.issuer.now())),
            last_token: slot.last_token,
            wake: request.is_waiting().then(|| {
                let watcher = WaiterGuard::as_watcher(self, slot, request.clone());
                Box::pin(async move { watcher.ticket.called.notified().await }) as _
            }),
        }))
    }

    fn list(&self, key: &LockKey, slot: &mut Slot, into: &mut Inspection) {
        slot.settle(&self.issuer);
        let now = self.issuer.now();
        into.holders
            .extend(slot.holders.list().into_iter().map(|holder| {
                let request = &holder.grant.request;
                let mut seen = HolderRef::new(key.clone(), id_of(request.owner()));
                seen.mode = Some(request.mode());
                seen.owner = Some(request.owner());
                seen.label = String::from(request.label());
                seen.token = holder.stored_token;
                seen.expires_in = Some(holder.expires().since(now));
                seen
            }));
        let waiting = slot.queue.values().chain(slot.watchers.values());
        into.waiters.extend(
            waiting
                .map(|ticket| WaiterRef::new(Some(ticket.request.mode()), ticket.request.label())),
        );
    }

    fn revoke_in(
        &self,
        slot: &mut Slot,
        holder: &HolderRef,
        revocation: Revocation,
    ) -> RevokeOutcome {
        slot.settle(&self.issuer);
        let owner = <[u8; 16]>::try_from(&*holder.id)
            .map(|id| AcquisitionId::from(u128::from_be_bytes(id)));
        let Some(held) = owner.ok().and_then(|owner| slot.holders.of_mut(owner)) else {
            return RevokeOutcome::AlreadyGone;
        };
        if revocation == Revocation::Immediate {
            let grant = Arc::clone(&held.grant);
            slot.holders.remove(&grant);
            grant.request.loss_notifier().lost(LossReason::Replaced);
            slot.settle(&self.issuer);
            RevokeOutcome::Freed
        } else {
            held.renewable = false;
            RevokeOutcome::FreeWithin(Some(held.expires().since(self.issuer.now())))
        }
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

#[async_trait]
impl LockBackend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(NAME);
        capabilities.shared = true;
        capabilities.permits = true;
        capabilities.expiry = Expiry::Server;
        capabilities.drift = ClockDrift::NONE;
        capabilities.fencing = Fencing::UntilAmnesia;
        capabilities.fairness = Fairness::Fifo;
        capabilities.waiter_notification = WaiterNotification::Pushed;
        capabilities.loss_detection = LossDetection::Pushed;
        capabilities.restart = Restart::EndsHolders;
        capabilities.pipelined_release = true;
        capabilities.inspect = true;
        capabilities.revoke = true;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.table.with_slot(request.key(), request.mode(), |slot| {
            Arc::clone(&self).attempt(slot, &request, NO_FLOOR)
        })
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        if request.is_cancelled() {
            return Err(cancelled());
        }
        let way_is_free = |slot: &mut Slot| slot.watchers.is_empty();
        if request.yields_to_waiters()
            && !self
                .table
                .with_slot(request.key(), request.mode(), way_is_free)
        {
            // Who waits by attempts has no place in the queue: it gets this long to make its next
            // one.
            tokio::select! {
                () = tokio::time::sleep(YIELD_RETRY) => {}
                () = request.cancelled() => return Err(cancelled()),
            }
        }
        let entry = self
            .table
            .with_slot(request.key(), request.mode(), |slot| {
                Ok::<_, Error>(match slot.try_grant(&request, NO_FLOOR, &self.issuer)? {
                    Some(grant) => ControlFlow::Break(grant),
                    None => ControlFlow::Continue(WaiterGuard::in_queue(
                        Arc::clone(&self),
                        slot,
                        request.clone(),
                    )),
                })
            })?;
        let mut place = match entry {
            ControlFlow::Break(grant) => return Ok(self.lease(grant)),
            ControlFlow::Continue(place) => {
                request.set_contended();
                place
            }
        };
        loop {
            let wait = match place.look()? {
                Turn::Served(grant) => return Ok(self.lease(grant)),
                Turn::Wait(wait) => wait,
            };
            tokio::select! {
                () = place.ticket.called.notified() => {}
                () = request.cancelled() => return Err(cancelled()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        let mut inspection = Inspection::default();
        for mode in NAME_SPACES {
            self.table
                .with_slot(key, mode, |slot| self.list(key, slot, &mut inspection));
        }
        Ok(inspection)
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        for mode in NAME_SPACES {
            let broken = self.table.with_slot(&holder.key, mode, |slot| {
                self.revoke_in(slot, holder, revocation)
            });
            if broken != RevokeOutcome::AlreadyGone {
                return Ok(broken);
            }
        }
        Ok(RevokeOutcome::AlreadyGone)
    }

    /// Always answers.
    async fn ping(&self) -> Result<Pong> {
        Ok(Pong::new())
    }

    /// There is nothing to close: other clients may share the backend.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A mode of each name space.
const NAME_SPACES: [Mode; 2] = [
    Mode::Exclusive,
    Mode::Permit {
        of: std::num::NonZeroU32::MIN,
    },
];

fn id_of(owner: AcquisitionId) -> [u8; 16] {
    owner.as_u128().to_be_bytes()
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the acquisition was cancelled")
        .with_backend(NAME)
        .with_operation("acquire")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_that_nobody_uses_cost_nothing() {
        let backend = Arc::new(MemoryBackend::new());
        for n in 0..1_000 {
            let request = Request::new(LockKey::new(format!("key/{n}")).unwrap());
            let Attempt::Granted(lease) =
                backend.clone().try_acquire(request.clone()).await.unwrap()
            else {
                panic!("free")
            };
            assert_eq!(backend.table.len(), 1);
            assert!(matches!(
                backend.clone().try_acquire(request).await.unwrap(),
                Attempt::Contended(_)
            ));
            lease.release().await.unwrap();
            assert_eq!(backend.table.len(), 0);
        }
    }

    #[tokio::test]
    async fn what_a_holder_does_costs_the_same_however_many_there_are() {
        let backend = Arc::new(MemoryBackend::new());
        let key = LockKey::new("key").unwrap();
        for mode in [
            Mode::Shared,
            Mode::Permit {
                of: std::num::NonZeroU32::new(10_000).unwrap(),
            },
        ] {
            let request = || Request::new(key.clone()).with_mode(mode);
            let looked_at = || {
                backend
                    .table
                    .with_slot(&key, mode, |slot| slot.holders.looked_at())
            };
            let mut leases = Vec::new();
            for _ in 0..1_000 {
                leases.push(Arc::clone(&backend).acquire(request()).await.unwrap());
            }
            let before = looked_at();
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
            let looks = looked_at() - before;
            assert!(
                before <= 10_000 && looks <= 20_000,
                "{mode}: 1 000 holders looked at {before} and {looks}"
            );
            another.release().await.unwrap();
            leases.remove(0).release().await.unwrap();
            assert_eq!(backend.table.len(), 0);
        }
    }
}

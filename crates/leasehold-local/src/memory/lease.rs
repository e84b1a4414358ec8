//! [`MemoryLease`]: a lease of the memory backend.

use std::sync::Arc;

use leasehold_core::{
    Deadline, ErrorKind, FencingToken, Mode, Released, Result,
    backend::{KeepAlive, Lease, RecordWrite, async_trait},
};

use super::{error::ERRORS, grant::Grant, lock_entry::LockEntry, records, state::State};

/// A lease of the [`MemoryBackend`](super::MemoryBackend).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_local::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::{LockKey, Released, backend::{LockBackend, Request}};
/// use leasehold_local::MemoryBackend;
///
/// let backend = Arc::new(MemoryBackend::new());
/// let lease = backend.acquire(Request::new(LockKey::new("item/42")?)).await?;
/// assert_eq!(lease.release().await?, Released::Freed);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MemoryLease {
    state: Arc<State>,
    grant: Arc<Grant>,
}

impl MemoryLease {
    pub(super) fn new(state: Arc<State>, grant: Arc<Grant>) -> Self {
        Self { state, grant }
    }

    fn with_entry<R>(&self, work: impl FnOnce(&mut LockEntry) -> R) -> R {
        self.state.with_entry(&self.grant.request, work)
    }
}

#[async_trait]
impl Lease for MemoryLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.grant.token
    }

    fn valid_until(&self) -> Deadline {
        self.grant.deadline.get()
    }

    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::PerLease
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        let request = &self.grant.request;
        let sent = request.now();
        let lost = |message| ERRORS.error(ErrorKind::Lost, "renew", message);
        self.with_entry(|entry| {
            entry.update(&self.state.issuer);
            let holder = entry
                .holders
                .get_mut(&self.grant)
                .ok_or_else(|| lost("the lock expired, was revoked or released"))?;
            if !holder.renewable {
                return Err(ERRORS.revoked());
            }
            if !self
                .grant
                .deadline
                .advance(request.deadline_from(sent), request.now())
            {
                return Err(lost("the deadline passed before the renewal"));
            }
            entry.holders.extend(
                &self.grant,
                self.state.issuer.now() + request.ttl().as_duration(),
            );
            Ok(())
        })
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        Ok(self.with_entry(|entry| {
            let now = self.state.issuer.now();
            let was_held = entry
                .holders
                .remove(&self.grant)
                .is_some_and(|holder| holder.expires > now);
            entry.update(&self.state.issuer);
            if was_held {
                Released::Freed
            } else {
                Released::AlreadyLost
            }
        }))
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        if self.grant.request.mode() != Mode::Exclusive {
            let message = "only the holder of an exclusive lock writes its record";
            return Err(ERRORS.error(ErrorKind::Unsupported, "write_record", message));
        }
        records::write(&self.state, &self.grant, &write).ok_or_else(|| {
            let message = "the lock expired, was revoked or released";
            ERRORS.error(ErrorKind::Lost, "write_record", message)
        })
    }
}

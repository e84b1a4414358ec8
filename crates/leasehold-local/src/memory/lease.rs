//! [`MemoryLease`]: a grant of the memory backend.

use std::sync::Arc;

use leasehold_core::{
    Deadline, Error, ErrorKind, FencingToken, Released, Result,
    backend::{KeepAlive, Lease, async_trait},
};

use super::{
    backend::{MemoryBackend, NAME},
    grant::Grant,
    slot::Slot,
};

/// A grant of the [`MemoryBackend`].
#[derive(Debug)]
pub struct MemoryLease {
    backend: Arc<MemoryBackend>,
    grant: Arc<Grant>,
}

impl MemoryLease {
    pub(super) fn new(backend: Arc<MemoryBackend>, grant: Arc<Grant>) -> Self {
        Self { backend, grant }
    }

    fn with_slot<R>(&self, work: impl FnOnce(&mut Slot) -> R) -> R {
        self.backend
            .table
            .with_slot(self.grant.request.key(), self.grant.request.mode(), work)
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
        self.with_slot(|slot| {
            slot.settle(&self.backend.issuer);
            let holder = slot
                .holders
                .get_mut(&self.grant)
                .ok_or_else(|| lost("the lock expired, was broken or released"))?;
            if !holder.renewable {
                return Err(lost("the lock was broken and cannot be renewed"));
            }
            if !self
                .grant
                .deadline
                .advance(request.deadline_from(sent), request.now())
            {
                return Err(lost("its deadline came before the renewal"));
            }
            slot.holders.prolong(
                &self.grant,
                self.backend.issuer.now() + request.ttl().as_duration(),
            );
            Ok(())
        })
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        Ok(self.with_slot(|slot| {
            let now = self.backend.issuer.now();
            let ours = slot
                .holders
                .remove(&self.grant)
                .is_some_and(|holder| holder.expires() > now);
            slot.settle(&self.backend.issuer);
            if ours {
                Released::Freed
            } else {
                Released::AlreadyLost
            }
        }))
    }
}

fn lost(why: &'static str) -> Error {
    Error::new(ErrorKind::Lost, why)
        .with_backend(NAME)
        .with_operation("renew")
}

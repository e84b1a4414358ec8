//! The memory backend as a node of a quorum, for tests.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Released, Request, Result, async_trait,
    quorum::{Attestation, Membership, Memory, QuorumNode, Recollection, Watched},
};

use super::backend::MemoryBackend;

/// It forgets nothing while it lives, so it is attested from the start, and terms mean nothing to
/// it.
#[async_trait]
impl QuorumNode for MemoryBackend {
    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        Ok(self.table.with_slot(request.key(), request.mode(), |slot| {
            slot.settle(&self.issuer);
            let freed = slot.holders.remove_owner(request.owner()).is_some();
            slot.settle(&self.issuer);
            if freed {
                Released::Freed
            } else {
                Released::AlreadyLost
            }
        }))
    }

    async fn recall(self: Arc<Self>, _: Option<Watched>) -> Result<Recollection> {
        Ok(Recollection {
            marked: Some(format!("{:p}", Arc::as_ptr(&self))),
            run: format!("{:p}", Arc::as_ptr(&self)),
            version: String::new(),
            membership: Membership {
                memory: Memory::Attested,
                watched_for: Duration::MAX,
            },
            durable: false,
            largest_ttl: None,
            highest_token: self.issuer.last(),
            wall_clock: None,
        })
    }

    async fn attest(self: Arc<Self>, attestation: Attestation) -> Result<()> {
        self.issuer.raise(attestation.above);
        Ok(())
    }
}

//! The memory backend as a node of a quorum, for tests.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    FencingToken, Released, Result,
    backend::{Attempt, Request, async_trait},
    quorum::{
        Attestation, Membership, Memory, QuorumNode, Recollection, Terms, TokenVote, Watched,
    },
};

use super::backend::MemoryBackend;

/// It forgets nothing while it lives, so it is attested from the start, and terms mean nothing to
/// it.
#[async_trait]
impl QuorumNode for MemoryBackend {
    async fn request_vote(self: Arc<Self>, request: Request, terms: Terms) -> Result<Attempt> {
        self.table.with_slot(request.key(), request.mode(), |slot| {
            // A quorum asks again where it has missed the answer.
            slot.holders.remove_owner(request.owner());
            Arc::clone(&self).attempt(slot, &request, terms.token_floor)
        })
    }

    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        _: Terms,
        token: FencingToken,
    ) -> Result<TokenVote> {
        Ok(self.table.with_slot(request.key(), request.mode(), |slot| {
            slot.settle(&self.issuer);
            let Some(holder) = slot.holders.of_mut(request.owner()) else {
                return TokenVote::Refused(None);
            };
            match holder.stored_token {
                Some(stored) if stored <= token => {
                    holder.stored_token = Some(token);
                    slot.last_token = slot.last_token.max(Some(token));
                    self.issuer.raise(token);
                    TokenVote::Accepted
                }
                stored => TokenVote::Refused(stored),
            }
        }))
    }

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

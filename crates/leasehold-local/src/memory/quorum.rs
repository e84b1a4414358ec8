//! The memory backend as a node of a quorum, for tests.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    FencingToken, Released, Result,
    backend::{Attempt, Request, async_trait},
    quorum::{
        Durability, Eligibility, EpochRecord, NodeState, QuorumNode, TokenVote, VoteRequirements,
        Watched,
    },
};

use super::backend::MemoryBackend;

/// The node loses no data while it lives, so it is attested from the start and ignores the
/// requirements.
#[async_trait]
impl QuorumNode for MemoryBackend {
    async fn request_vote(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
    ) -> Result<Attempt> {
        self.state.with_entry(&request, |entry| {
            // A quorum repeats a request whose reply was lost.
            entry.holders.remove_owner(request.owner());
            self.attempt(entry, &request, requirements.token_floor)
        })
    }

    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        _: VoteRequirements,
        token: FencingToken,
    ) -> Result<TokenVote> {
        Ok(self.state.with_entry(&request, |entry| {
            entry.update(&self.state.issuer);
            let Some(holder) = entry.holders.by_owner_mut(request.owner()) else {
                return TokenVote::Refused(None);
            };
            match holder.stored_token {
                Some(stored) if stored <= token => {
                    holder.stored_token = Some(token);
                    entry.last_token = entry.last_token.max(Some(token));
                    self.state.issuer.raise(token);
                    TokenVote::Accepted
                }
                stored => TokenVote::Refused(stored),
            }
        }))
    }

    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        Ok(self.state.with_entry(&request, |entry| {
            entry.update(&self.state.issuer);
            let freed = entry.holders.remove_owner(request.owner()).is_some();
            entry.update(&self.state.issuer);
            if freed {
                Released::Freed
            } else {
                Released::AlreadyLost
            }
        }))
    }

    async fn read_state(self: Arc<Self>, _: Option<Watched>) -> Result<NodeState> {
        Ok(NodeState {
            recorded: Some(format!("{:p}", Arc::as_ptr(&self))),
            incarnation: format!("{:p}", Arc::as_ptr(&self)),
            version: String::new(),
            eligibility: Eligibility {
                durability: Durability::Confirmed,
                watched_for: Duration::MAX,
            },
            durable: false,
            largest_ttl: None,
            highest_token: self.state.issuer.last(),
            wall_clock: None,
        })
    }

    async fn record_epoch(self: Arc<Self>, record: EpochRecord) -> Result<()> {
        self.state.issuer.raise(record.above);
        Ok(())
    }
}

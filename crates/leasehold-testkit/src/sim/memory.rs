//! The data of a simulated node.

use std::{collections::HashMap, time::Duration};

use leasehold_core::{
    AcquisitionId, FencingToken, LockKey, Timestamp,
    backend::Request,
    quorum::{EpochRecord, NodeToken, TokenVote},
};

use super::node_bug::NodeBug;

/// All data that a crash can lose.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    keys: HashMap<Vec<u8>, Entry>,
    /// The floor of tokens: all later tokens are larger.
    above: u64,
    pub(super) mark: Option<EpochRecord>,
    /// The run that clients observe. A crash loses it, and a snapshot restores it.
    pub(super) watched: Option<WatchedRun>,
}

#[derive(Clone, Debug)]
pub(super) struct WatchedRun {
    pub(super) run: String,
    /// A random number, which differs from that of an observation that was lost.
    pub(super) name: u64,
    pub(super) duration: Duration,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    holder: Option<Holder>,
    fence: Option<NodeToken>,
}

#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) owner: AcquisitionId,
    pub(super) label: String,
    pub(super) until: Timestamp,
}

/// The reply to an attempt.
pub(super) enum AcquireReply {
    Granted(FencingToken),
    /// The lock is held for this much longer.
    Held(Duration),
}

impl Memory {
    fn entry(&mut self, key: &LockKey, now: Timestamp) -> &mut Entry {
        let entry = self.keys.entry(key.as_bytes().to_vec()).or_default();
        entry.holder.take_if(|holder| holder.until <= now);
        entry
    }

    pub(super) fn acquire(
        &mut self,
        request: &Request,
        token_floor: FencingToken,
        now: Timestamp,
    ) -> AcquireReply {
        let above = self.above;
        let entry = self.entry(request.key(), now);
        if let Some(holder) = entry
            .holder
            .as_ref()
            .filter(|holder| holder.owner != request.owner())
        {
            return AcquireReply::Held(holder.until.since(now));
        }
        let floor = token_floor.get().max(above);
        let fence = NodeToken::granted(entry.fence, FencingToken::new(floor), request.owner());
        let until = now + request.ttl().as_duration();
        entry.holder = Some(Holder {
            owner: request.owner(),
            label: request.label().to_owned(),
            until,
        });
        entry.fence = Some(fence);
        AcquireReply::Granted(fence.token)
    }

    pub(super) fn renew(&mut self, request: &Request, now: Timestamp) -> bool {
        let ours = self
            .entry(request.key(), now)
            .holder
            .as_mut()
            .filter(|holder| holder.owner == request.owner());
        ours.map(|holder| holder.until = now + request.ttl().as_duration())
            .is_some()
    }

    pub(super) fn release(
        &mut self,
        request: &Request,
        now: Timestamp,
        bug: Option<NodeBug>,
    ) -> bool {
        let any = bug == Some(NodeBug::ReleasesAnyOwner);
        let entry = self.entry(request.key(), now);
        entry
            .holder
            .take_if(|holder| any || holder.owner == request.owner())
            .is_some()
    }

    pub(super) fn raise(
        &mut self,
        request: &Request,
        token: FencingToken,
        now: Timestamp,
        bug: Option<NodeBug>,
    ) -> TokenVote {
        let above = self.above;
        let entry = self.entry(request.key(), now);
        let asked = NodeToken {
            token,
            owner: request.owner(),
        };
        let vote = match bug {
            Some(NodeBug::WriteBackLost) => return TokenVote::Accepted,
            Some(NodeBug::WriteBackNotStrict) => TokenVote::Accepted,
            // A token up to the floor was copied from other nodes and has no owner here.
            _ if token.get() <= above => TokenVote::Refused(Some(FencingToken::new(above))),
            _ => NodeToken::accepts(
                entry.fence,
                entry.holder.as_ref().map(|holder| holder.owner),
                asked,
            ),
        };
        if vote == TokenVote::Accepted {
            entry.fence = Some(asked);
        }
        vote
    }

    pub(super) fn holder(
        &mut self,
        key: &LockKey,
        now: Timestamp,
    ) -> (Option<Holder>, Option<FencingToken>) {
        let entry = self.entry(key, now);
        (entry.holder.clone(), entry.fence.map(|fence| fence.token))
    }

    pub(super) fn holds(&self, now: Timestamp) -> bool {
        self.keys.values().any(|entry| {
            entry
                .holder
                .as_ref()
                .is_some_and(|holder| holder.until > now)
        })
    }

    pub(super) fn highest_token(&self) -> FencingToken {
        let tokens = self
            .keys
            .values()
            .filter_map(|entry| Some(entry.fence?.token.get()));
        FencingToken::new(tokens.max().unwrap_or(0).max(self.above))
    }

    pub(super) fn record_epoch(&mut self, record: EpochRecord) {
        self.above = self.above.max(record.above.get());
        self.watched = None;
        self.mark = Some(record);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold_core::{LockKey, Ttl};

    use super::*;

    #[test]
    fn duplicate_request_after_renewal_does_not_shorten_the_lock() {
        let ttl = Duration::from_secs(10);
        let request = Request::new(LockKey::new("k").unwrap()).with_ttl(Ttl::new(ttl).unwrap());
        let mut memory = Memory::default();
        let at = |secs| Timestamp::from_nanos(0) + Duration::from_secs(secs);
        let until = |memory: &mut Memory, now| memory.holder(request.key(), now).0.unwrap().until;
        assert!(matches!(
            memory.acquire(&request, FencingToken::new(0), at(1)),
            AcquireReply::Granted(_)
        ));
        assert!(memory.renew(&request, at(5)));
        assert_eq!(until(&mut memory, at(5)), at(15));
        assert!(matches!(
            memory.acquire(&request, FencingToken::new(0), at(6)),
            AcquireReply::Granted(_)
        ));
        assert_eq!(until(&mut memory, at(6)), at(16));
    }
}

//! [`Job`]: an operation that shares a pipeline with those of other tasks.

use std::sync::Arc;

use leasehold_core::{FencingToken, backend::Request};
use redis::Cmd;

use crate::{
    commands::{self, Operation},
    keys::{self, Keys, Kind, LockValue},
    quorum::state::CachedNodeState,
};

/// An operation on an exclusive lock, as one task requests it.
pub(crate) enum Job {
    Single(Operation, Request),
    /// The acquisition at a node of a quorum.
    Vote(Vote),
}

impl Job {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Single(operation, _) => operation.name(),
            Self::Vote(_) => "acquire",
        }
    }

    pub(crate) const fn request(&self) -> &Request {
        match self {
            Self::Single(_, request) => request,
            Self::Vote(vote) => &vote.request,
        }
    }
}

/// A vote on an exclusive lock.
pub(crate) struct Vote {
    pub(crate) request: Request,
    /// The state on which the node may vote.
    pub(crate) node_state: Arc<CachedNodeState>,
    pub(crate) token_floor: FencingToken,
    /// An earlier attempt of this acquisition may have registered it as a waiter.
    pub(crate) registered: bool,
}

impl Vote {
    /// Returns whether one call of the script can make both votes.
    pub(crate) fn goes_with(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.node_state, &other.node_state);
        Arc::ptr_eq(ours, theirs) || ours.run == theirs.run && ours.mark == theirs.mark
    }
}

/// Adds the keys and the arguments of the script that makes these votes. `first` is one of them.
pub(crate) fn acquire_arguments<'a>(
    cmd: &mut Cmd,
    prefix: &[u8],
    first: &Vote,
    votes: impl Iterator<Item = &'a Vote> + Clone,
) {
    let [mark, _, top] = keys::of_node(prefix);
    cmd.arg(2 + 5 * votes.clone().count()).arg(mark).arg(top);
    for vote in votes.clone() {
        let keys = Keys::new(prefix, vote.request.key());
        cmd.arg(keys.lock());
        for kind in [Kind::Fence, Kind::Order, Kind::Writers, Kind::Waiters] {
            cmd.arg(keys.derived(kind));
        }
    }
    let node_state = &first.node_state;
    cmd.arg(node_state.mark.as_str())
        .arg(&node_state.run)
        .arg(node_state.mark.above);
    for vote in votes {
        let options = commands::options(&vote.request, vote.registered);
        cmd.arg(LockValue::of(&vote.request).parts())
            .arg(vote.request.ttl().as_millis())
            .arg(LockValue::waiting(&vote.request).parts())
            .arg(vote.token_floor.get())
            .arg(options.len())
            .arg(options);
    }
}

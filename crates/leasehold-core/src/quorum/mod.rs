//! Redlock with fencing tokens: one lock over a quorum of nodes.
//!
//! These files are the algorithm, as plain functions without I/O and without clocks. The quorum
//! backend calls them, and so does the model that is explored exhaustively (`tests/quorum_model`).
//! Read them in this order, beside the page *Distributed Locks with Redis* of the Redis
//! documentation, whose steps are named by their numbers:
//!
//! | file | concept | there |
//! |---|---|---|
//! | `tally` | [`Majority`] of the *configured* nodes; [`Tally`]: is the attempt won, still open, lost? | steps 2 and 3 |
//! | `validity` | [`validity`]: until when a majority holds for us | steps 1, 3 and 4 |
//! | `write_back` | [`Fence`] per node and key; [`choose`] the token, [`round`] by round | not there: it has no tokens |
//! | `renewal` | [`renewal`]: is it extended, lost, or neither? [`may_heal`]: may a node be taken back? | "extending the lock" |
//! | `membership` | [`Membership`] of a node that restarted: grace, attestation, [`rejoin`] | "delayed restarts" |
//!
//! # One acquisition
//! 1. Ask all nodes at once, each with a time-out. The deadline of a node's grant is counted from
//!    before *its* request was sent, and is short by the drift.
//! 2. Put the answers into a [`Tally`] as they come. [`Won`](Standing::Won) by a majority of the
//!    configured nodes: do not wait for the rest. No longer to be won: release *every* node, also
//!    those that refused or did not answer, and try again later.
//! 3. [`choose`] the token: the largest of the grants, T. If a majority granted exactly T, it
//!    stands. Otherwise write it back: every node that granted is asked to stand at T, and it
//!    accepts by [`Fence::accepts`]; go on with what [`round`] says, until a majority stands at one
//!    token.
//! 4. The lock is ours if now is before its [`validity`], the k-th largest of the nodes' deadlines
//!    where k is the majority. Otherwise release every node.
//! 5. A grant that comes later is adopted (it counts in the next validity) or, if the attempt is
//!    over, released.
//!
//! # Why tokens are unique and ordered
//! Per node and key there is one pair, F = (token, owner), whose token strictly grows from owner to
//! owner: a grant writes one that is larger than every earlier one, and a write-back is refused
//! unless the lock is still the writer's and F smaller (or already the very one). An acquisition
//! ends with one token that a majority of the nodes had as its F. Two majorities share a node, and
//! there one of the two came first and the other is larger. If the first acquisition was over
//! before the second began, then at the shared node it was first there too. No clock enters into
//! this, only that nodes do not forget: hence the membership of nodes that restarted, where a clock
//! does enter.

mod attempt;
mod backend;
mod capabilities;
mod config;
mod contention;
mod deadline;
mod discovery;
mod eligibility;
mod fan_out;
mod health;
mod inspect;
mod jitter;
mod lease;
mod maintenance;
mod member;
mod min_token;
mod node;
mod ping;
mod provision;
mod renewal;
mod revoke;
mod rollback;
mod tally;
mod token;
mod watch;
mod write_back;

pub(crate) use self::member::is_trouble;
pub use self::{
    backend::QuorumBackend,
    config::QuorumConfig,
    deadline::validity,
    eligibility::{Ballot, Membership, Memory, Rejoin, rejoin},
    jitter::seed_pauses,
    member::QuorumMember,
    node::{Attestation, QuorumNode, Recollection, Terms, TokenVote, Watched},
    provision::Provision,
    renewal::{Renewed, may_heal, renewal},
    tally::{Majority, Standing, Tally, Vote},
    write_back::{Answer, Fence, Round, TokenChoice, choose, round},
};

//! Redlock with fencing tokens: one lock over a quorum of nodes.
//!
//! The algorithm is written as plain functions without I/O and without clocks. The quorum backend
//! calls them, and a model explores them exhaustively (`tests/quorum_model`). Read the files in
//! this order, beside the page *Distributed Locks with Redis* of the Redis documentation:
//!
//! | file | concept | step on that page |
//! |---|---|---|
//! | `tally` | [`Majority`] of the *configured* nodes; [`Tally`]: whether an attempt is won, pending or lost | steps 2 and 3 |
//! | `deadline` | [`validity`]: the time until which a majority holds the lock | steps 1, 3 and 4 |
//! | `write_back` | [`NodeToken`]: the token of one node and key; [`choose_token`] the token; evaluate a round of the write-back | none: it has no tokens |
//! | `renewal` | [`renewal`]: whether the lease is extended, unchanged or lost; [`may_reacquire`]: whether a node may be acquired again | "extending the lock" |
//! | `eligibility` | [`Eligibility`] of a node that restarted: grace period, epoch record, [`readmission`] | "delayed restarts" |
//!
//! # One acquisition
//! 1. Send the request to all nodes at once, each with a timeout. The deadline of a node's grant is
//!    counted from before *its* request was sent, and shortened by the clock drift.
//! 2. Add each answer to a [`Tally`]. As soon as a majority of the configured nodes has granted
//!    ([`Won`](AttemptState::Won)), do not wait for the rest. If a majority is no longer possible,
//!    release *every* node, including those that refused or did not answer, and retry later.
//! 3. [`choose_token`] the token: the largest granted token T. If a majority granted exactly T, T
//!    is the token. Otherwise write it back: ask every node that granted to raise its token to T,
//!    which the node answers by [`NodeToken::accepts`]. Repeat as [`evaluate_round`] says until a
//!    majority has one token.
//! 4. The lock is held if the current time is before its [`validity`]: the k-th largest of the
//!    nodes' deadlines, where k is the majority. Otherwise release every node.
//! 5. A grant that arrives later is adopted, so that it counts in the next validity, or is released
//!    if the attempt has failed.
//!
//! # Why tokens are unique and ordered
//! Each node stores one pair per key, F = (token, owner). Its token grows strictly from owner to
//! owner. A grant writes a token that is larger than every earlier one. A write-back is rejected
//! unless the writer still holds the lock and F is smaller, or is equal to the pair that is
//! written.
//!
//! An acquisition ends with one token that a majority of the nodes had as F. Two majorities share a
//! node. At that node one of the two tokens came first, and the other is larger. If the first
//! acquisition ended before the second began, it also came first at the shared node. This argument
//! needs no clock. It needs only that nodes do not lose data. Nodes that restarted are therefore
//! excluded for a grace period, which does need a clock.

mod asking;
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
mod release;
mod renewal;
mod reply;
mod revoke;
mod rollback;
mod state;
mod tally;
mod timeout;
mod token;
mod watch;
mod write_back;

pub use self::{
    backend::QuorumBackend,
    config::QuorumConfig,
    deadline::validity,
    eligibility::{Durability, Eligibility, Readmission, VoteRights, readmission},
    jitter::seed_pauses,
    member::QuorumMember,
    node::{EpochRecord, NodeState, QuorumNode, TokenVote, VoteRequirements, Watched},
    provision::Provision,
    renewal::{Renewed, may_reacquire, renewal},
    tally::{AttemptState, Majority, Tally, Vote},
    write_back::{NodeToken, RoundOutcome, TokenDecision, VoteReply, choose_token, evaluate_round},
};

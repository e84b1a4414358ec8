//! The server as a node of a quorum.

pub(crate) mod marker;
mod node;
pub(crate) mod read_state;
pub(crate) mod state;
pub(crate) mod vote;

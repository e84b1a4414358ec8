//! The possible steps. Nodes and attempts are identified by their index.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The attempt sends its request to all nodes.
    Start { attempt: usize },
    /// The request arrives at a free node, for the first time or again. If `answered` is set, the
    /// answer replaces an earlier one.
    Grant {
        attempt: usize,
        node: usize,
        floor: u8,
        answered: bool,
    },
    /// The attempt counts the answers of these nodes (a bit set) and decides.
    Decide { attempt: usize, nodes: u8 },
    /// The attempt counts an answer that came later.
    Adopt { attempt: usize, node: usize },
    /// A write-back of this token arrives.
    Raise {
        attempt: usize,
        node: usize,
        token: u8,
    },
    /// The attempt counts the answers of these nodes to its write-back. The answers of the
    /// remaining nodes time out.
    Settle { attempt: usize, nodes: u8 },
    /// The holder sends a renewal to all nodes.
    Renew { attempt: usize },
    /// The renewal arrives at a node that is locked for the attempt.
    Extend { attempt: usize, node: usize },
    /// The request that accompanies a renewal, to acquire the node again, arrives at a node that is
    /// free or was locked for the attempt meanwhile.
    Reacquire {
        attempt: usize,
        node: usize,
        floor: u8,
    },
    /// The answer to a renewal arrives.
    Extended { attempt: usize, node: usize },
    /// The attempt releases every node, because it failed, is done, or is cancelled.
    Release { attempt: usize },
    /// The release arrives.
    Free { node: usize },
    /// A deadline of the attempt passes.
    Pass { attempt: usize },
    /// The lock of the node expires.
    Expire { node: usize },
    /// The node restarts and has lost all data.
    Restart { node: usize },
    /// The grace period of the node ends.
    GraceEnds { node: usize },
    /// The node receives another node's tokens.
    Copy { node: usize, from: usize },
    /// The node votes on tokens again.
    Readmit { node: usize },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |attempt: usize| ["A", "B", "C"][attempt];
        let list = |nodes: u8| {
            (0..8)
                .filter(|node| nodes & (1 << node) != 0)
                .map(|node| node + 1)
                .collect::<Vec<_>>()
        };
        match *self {
            Self::Start { attempt } => {
                write!(f, "{} sends its request to all nodes", name(attempt))
            }
            Self::Grant {
                attempt,
                node,
                floor,
                answered: _,
            } => {
                write!(
                    f,
                    "node {} grants {}, floor {floor}",
                    node + 1,
                    name(attempt)
                )
            }
            Self::Decide { attempt, nodes } => {
                write!(
                    f,
                    "{} counts the answers of {:?}",
                    name(attempt),
                    list(nodes)
                )
            }
            Self::Adopt { attempt, node } => {
                write!(f, "{} adopts node {}", name(attempt), node + 1)
            }
            Self::Raise {
                attempt,
                node,
                token,
            } => {
                write!(
                    f,
                    "{}'s write-back of {token} reaches node {}",
                    name(attempt),
                    node + 1
                )
            }
            Self::Settle { attempt, nodes } => {
                write!(
                    f,
                    "{} counts the write-back answers of {:?}",
                    name(attempt),
                    list(nodes)
                )
            }
            Self::Renew { attempt } => write!(f, "{} sends a renewal", name(attempt)),
            Self::Extend { attempt, node } => {
                write!(f, "{}'s renewal reaches node {}", name(attempt), node + 1)
            }
            Self::Reacquire {
                attempt,
                node,
                floor,
            } => {
                write!(
                    f,
                    "node {} is acquired again by {}, floor {floor}",
                    node + 1,
                    name(attempt)
                )
            }
            Self::Extended { attempt, node } => {
                write!(
                    f,
                    "{} counts node {}'s answer to its renewal",
                    name(attempt),
                    node + 1
                )
            }
            Self::Release { attempt } => write!(f, "{} releases", name(attempt)),
            Self::Free { node } => write!(f, "the release reaches node {}", node + 1),
            Self::Pass { attempt } => write!(f, "a deadline of {} passes", name(attempt)),
            Self::Expire { node } => write!(f, "the lock at node {} expires", node + 1),
            Self::Restart { node } => write!(f, "node {} restarts and loses its data", node + 1),
            Self::GraceEnds { node } => write!(f, "the grace period of node {} ends", node + 1),
            Self::Copy { node, from } => {
                write!(f, "node {} copies from node {}", node + 1, from + 1)
            }
            Self::Readmit { node } => write!(f, "node {} votes on tokens again", node + 1),
        }
    }
}

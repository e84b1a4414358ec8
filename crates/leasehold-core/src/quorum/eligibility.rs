//! The eligibility of nodes to vote: a node that restarted may have lost its promises.

use std::time::Duration;

use crate::{fencing::FencingToken, quorum::tally::Majority};

/// The state of a node's data.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::quorum::{Durability, Eligibility};
///
/// let node = Eligibility { durability: Durability::Confirmed, watched_for: Duration::ZERO };
/// assert!(node.vote_rights(Duration::from_secs(60)).token);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The node is in the incarnation that its epoch record names: it has not restarted since.
    Confirmed,
    /// The node restarted, or has no epoch record. A record of another incarnation proves nothing:
    /// a snapshot or a backup restores the record together with older tokens, and the node cannot
    /// detect that its data is older.
    Unknown,
}

/// The facts that decide whether a node may vote.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::quorum::{Durability, Eligibility};
///
/// let largest_ttl = Duration::from_secs(60);
/// let watched_for = Duration::from_secs(20);
/// let mut node = Eligibility { durability: Durability::Unknown, watched_for };
/// assert!(!node.vote_rights(largest_ttl).lock);
/// node.watched_for = largest_ttl;
/// assert!(node.may_be_readmitted(largest_ttl));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eligibility {
    /// Whether the node may have lost data.
    pub durability: Durability,
    /// The time for which clients have watched the node since it restarted or lost data, measured
    /// on their clocks: see [`read_state`](super::QuorumNode::read_state). The node's own clock may
    /// be set at any time.
    pub watched_for: Duration,
}

/// The votes that a node may cast.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::quorum::{Durability, Eligibility, VoteRights};
///
/// // The node restarted, and its grace period has passed.
/// let largest_ttl = Duration::from_secs(60);
/// let node = Eligibility { durability: Durability::Unknown, watched_for: largest_ttl };
/// assert_eq!(node.vote_rights(largest_ttl), VoteRights { lock: true, token: false });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VoteRights {
    /// Whether the node's grants and renewals count.
    pub lock: bool,
    /// Whether the node's tokens count.
    pub token: bool,
}

impl Eligibility {
    /// Returns what this node may vote on. No lock of the quorum may have a longer TTL than
    /// `largest_ttl`.
    ///
    /// A node that may have lost a grant does not vote until that grant has expired. (The Redis
    /// page calls this *delayed restarts*.) It does not vote on tokens until it is
    /// [readmitted](readmission) *after* that time. Before then, a vote that it cast before the
    /// restart may be counted by an acquisition that is still running and that no other node knows
    /// of.
    #[must_use]
    pub fn vote_rights(&self, largest_ttl: Duration) -> VoteRights {
        match self.durability {
            Durability::Confirmed => VoteRights {
                lock: true,
                token: true,
            },
            Durability::Unknown => VoteRights {
                lock: self.watched_for >= largest_ttl,
                token: false,
            },
        }
    }

    /// Returns whether the node needs to be readmitted and its grace period has passed.
    #[must_use]
    pub fn may_be_readmitted(&self, largest_ttl: Duration) -> bool {
        let vote_rights = self.vote_rights(largest_ttl);
        vote_rights.lock && !vote_rights.token
    }
}

/// The decision about the tokens of a node that restarted.
///
/// ```
/// use leasehold_core::{FencingToken, quorum::{Majority, Readmission, readmission}};
///
/// let [first, second] = [3, 4].map(FencingToken::new);
/// assert_eq!(readmission([first, second], Majority::of(3)), Readmission::Copy(second));
/// assert_eq!(readmission([first], Majority::of(3)), Readmission::TooFew(1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Readmission {
    /// The node takes this token, unless its own is *larger*, and may then vote again. Zero means
    /// that no node has a token for the key.
    ///
    /// Only the token is copied, without an owner. Two of the other nodes may have the same token
    /// with different owners, and only one of these owns it. If the wrong owner were copied, its
    /// write-back of that token would be accepted as the pair that is stored already.
    Copy(FencingToken),
    /// This many more of the other nodes must answer.
    TooFew(usize),
}

/// Decides the token of a node that restarted, from the answers of the *other* nodes that have lost
/// no token. Each answer is the node's largest token for a key, or zero.
///
/// These nodes are the ones that may vote, and durable nodes in their own grace period. Ask them
/// after the grace period of the restarted node has passed.
///
/// A majority of the other nodes is needed. Every token was accepted by a majority of all nodes. If
/// the restarted node belonged to it, so did k − 1 other nodes, and a majority of the other
/// nodes shares a node with every set of k − 1 of them.
#[must_use]
pub fn readmission(others: impl IntoIterator<Item = FencingToken>, all: Majority) -> Readmission {
    let (mut answers, mut largest) = (0, FencingToken::new(0));
    for token in others {
        answers += 1;
        largest = largest.max(token);
    }
    let needed = Majority::of(all.configured().saturating_sub(1)).needed();
    if answers >= needed {
        Readmission::Copy(largest)
    } else {
        Readmission::TooFew(needed - answers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    const fn token(value: u64) -> FencingToken {
        FencingToken::new(value)
    }

    #[test]
    fn a_node_that_may_have_forgotten_waits_and_then_rejoins() {
        let node = |durability, secs| Eligibility {
            durability,
            watched_for: Duration::from_secs(secs),
        };
        let all = VoteRights {
            lock: true,
            token: true,
        };
        assert_eq!(node(Durability::Confirmed, 0).vote_rights(TTL), all);
        assert_eq!(
            node(Durability::Unknown, 9).vote_rights(TTL),
            VoteRights {
                lock: false,
                token: false
            }
        );
        assert!(!node(Durability::Unknown, 9).may_be_readmitted(TTL));
        assert_eq!(
            node(Durability::Unknown, 10).vote_rights(TTL),
            VoteRights {
                lock: true,
                token: false
            }
        );
        assert!(node(Durability::Unknown, 10).may_be_readmitted(TTL));
        assert!(!node(Durability::Confirmed, 10).may_be_readmitted(TTL));
    }

    #[test]
    fn a_majority_of_the_others_must_answer() {
        let of =
            |others: &[u64], all| readmission(others.iter().copied().map(token), Majority::of(all));
        assert_eq!(of(&[3], 3), Readmission::TooFew(1));
        assert_eq!(of(&[3, 0], 3), Readmission::Copy(token(3)));
        assert_eq!(of(&[3, 4], 5), Readmission::TooFew(1));
        assert_eq!(of(&[3, 4, 2], 5), Readmission::Copy(token(4)));
        assert_eq!(of(&[0, 0], 3), Readmission::Copy(token(0)));
    }

    proptest! {
        /// Any majority of the other nodes knows every token that a majority accepted before one
        /// node lost its data.
        #[test]
        fn no_accepted_token_is_missed(half in 1..4_usize, order in Just((0..7_usize).collect::<Vec<_>>()).prop_shuffle(),
                                       asked in Just((1..7_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let all = Majority::of(2 * half + 1);
            let accepted: Vec<_> =
                order.into_iter().filter(|node| *node < all.configured()).take(all.needed()).collect();
            // Node 0 lost its data.
            let stored = |node: &usize| token(if accepted.contains(node) { 9 } else { 8 });
            let asked: Vec<_> = asked
                .into_iter()
                .filter(|node| *node < all.configured())
                .take(Majority::of(all.configured() - 1).needed())
                .collect();
            prop_assert_eq!(readmission(asked.iter().map(stored), all), Readmission::Copy(token(9)));
        }
    }
}

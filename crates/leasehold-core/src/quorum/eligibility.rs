//! Which nodes may vote: those that restarted may have forgotten what they promised.

use std::time::Duration;

use crate::{fencing::FencingToken, quorum::tally::Majority};

/// What is known of a node's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// It is in the run that was attested: it has not restarted since.
    Attested,
    /// It restarted, or was never attested. Also with a marker that came back: a snapshot or a
    /// backup brings markers back, and older tokens with them, and no node can tell that it has
    /// older data than it had.
    Unknown,
}

/// One node, as far as its right to vote is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Its memory.
    pub memory: Memory,
    /// For how long clients have watched it since it restarted or forgot, on their clocks: see
    /// [`recall`](super::QuorumNode::recall). Its own clock may be set, also while it starts.
    pub watched_for: Duration,
}

/// What a node may vote on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ballot {
    /// Its grants and renewals count.
    pub lock: bool,
    /// Its tokens count.
    pub token: bool,
}

impl Membership {
    /// What this node may vote on, where no lock of this quorum has a longer TTL than
    /// `largest_ttl`.
    ///
    /// A node that may have forgotten a grant does not vote until that grant would have expired
    /// (the page of Redis calls it *delayed restarts*). On tokens it does not vote before it has
    /// [rejoined](rejoin) *after* that: until then a vote that it gave before the restart may be
    /// counted by an acquisition that is still under way and that no other node knows of.
    #[must_use]
    pub fn ballot(&self, largest_ttl: Duration) -> Ballot {
        match self.memory {
            Memory::Attested => Ballot {
                lock: true,
                token: true,
            },
            Memory::Unknown => Ballot {
                lock: self.watched_for >= largest_ttl,
                token: false,
            },
        }
    }

    /// Whether it may rejoin now: it has to, and its grace is over.
    #[must_use]
    pub fn may_rejoin(&self, largest_ttl: Duration) -> bool {
        let ballot = self.ballot(largest_ttl);
        ballot.lock && !ballot.token
    }
}

/// What a node that restarted may do about its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejoin {
    /// It takes this token, unless its own is *larger*, and then votes again. Zero: the key has no
    /// token anywhere.
    ///
    /// The token alone, and *nobody's*: two of the others may have the same token with different
    /// owners, of which one stands at it. Were the other's name copied, its write-back of that
    /// token would be accepted as the very one that is there.
    Copy(FencingToken),
    /// This many more of the others must answer.
    TooFew(usize),
}

/// Rejoins with the answers of the *other* nodes that remember every token that they granted or
/// accepted: each one's largest token of a key, zero if it has none. Those are the nodes that vote,
/// and durable ones that wait for their own grace. Ask them after the grace is over.
///
/// A majority of the others, because every token was accepted by a majority of all: if the node
/// that forgot was in it, k − 1 of the others were too, and a majority of the others shares one
/// with every k − 1 of them.
#[must_use]
pub fn rejoin(others: impl IntoIterator<Item = FencingToken>, all: Majority) -> Rejoin {
    let (mut answers, mut largest) = (0, FencingToken::new(0));
    for token in others {
        answers += 1;
        largest = largest.max(token);
    }
    let needed = Majority::of(all.configured().saturating_sub(1)).needed();
    if answers >= needed {
        Rejoin::Copy(largest)
    } else {
        Rejoin::TooFew(needed - answers)
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
        let node = |memory, secs| Membership {
            memory,
            watched_for: Duration::from_secs(secs),
        };
        let all = Ballot {
            lock: true,
            token: true,
        };
        assert_eq!(node(Memory::Attested, 0).ballot(TTL), all);
        assert_eq!(
            node(Memory::Unknown, 9).ballot(TTL),
            Ballot {
                lock: false,
                token: false
            }
        );
        assert!(!node(Memory::Unknown, 9).may_rejoin(TTL));
        assert_eq!(
            node(Memory::Unknown, 10).ballot(TTL),
            Ballot {
                lock: true,
                token: false
            }
        );
        assert!(node(Memory::Unknown, 10).may_rejoin(TTL));
        assert!(!node(Memory::Attested, 10).may_rejoin(TTL));
    }

    #[test]
    fn a_majority_of_the_others_must_answer() {
        let of = |others: &[u64], all| rejoin(others.iter().copied().map(token), Majority::of(all));
        assert_eq!(of(&[3], 3), Rejoin::TooFew(1));
        assert_eq!(of(&[3, 0], 3), Rejoin::Copy(token(3)));
        assert_eq!(of(&[3, 4], 5), Rejoin::TooFew(1));
        assert_eq!(of(&[3, 4, 2], 5), Rejoin::Copy(token(4)));
        assert_eq!(of(&[0, 0], 3), Rejoin::Copy(token(0)));
    }

    proptest! {
        /// Whatever majority had accepted a token before one of its nodes forgot, any majority of
        /// the others knows it.
        #[test]
        fn no_accepted_token_is_missed(half in 1..4_usize, order in Just((0..7_usize).collect::<Vec<_>>()).prop_shuffle(),
                                       asked in Just((1..7_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let all = Majority::of(2 * half + 1);
            let accepted: Vec<_> =
                order.into_iter().filter(|node| *node < all.configured()).take(all.needed()).collect();
            // Node 0 forgot.
            let stored = |node: &usize| token(if accepted.contains(node) { 9 } else { 8 });
            let asked: Vec<_> = asked
                .into_iter()
                .filter(|node| *node < all.configured())
                .take(Majority::of(all.configured() - 1).needed())
                .collect();
            prop_assert_eq!(rejoin(asked.iter().map(stored), all), Rejoin::Copy(token(9)));
        }
    }
}

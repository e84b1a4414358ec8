//! [`Tally`]: the votes of the nodes in one attempt.

/// A majority of the *configured* nodes.
///
/// It is never a majority of the nodes that answered. Otherwise two clients that each reach a
/// different half of the nodes would both have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Majority {
    configured: usize,
}

impl Majority {
    /// Creates the majority of this many configured nodes.
    #[must_use]
    pub const fn of(configured: usize) -> Self {
        Self { configured }
    }

    /// Returns the number of configured nodes.
    #[must_use]
    pub const fn configured(self) -> usize {
        self.configured
    }

    /// Returns the number k of nodes that are needed, which is more than half.
    #[must_use]
    pub const fn needed(self) -> usize {
        self.configured / 2 + 1
    }

    /// Returns the number of nodes that may be missing.
    #[must_use]
    pub const fn spare(self) -> usize {
        self.configured.saturating_sub(self.needed())
    }
}

/// The vote of one node in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vote {
    /// The node has not answered yet.
    Pending,
    /// The node holds the lock for this acquisition and may vote; see
    /// [`Eligibility`](crate::quorum::Eligibility).
    Granted,
    /// The node holds the lock for another acquisition.
    Refused,
    /// The node did not answer in time, failed, or may not vote.
    Failed,
}

/// The counted votes of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tally {
    majority: Majority,
    granted: usize,
    refused: usize,
    failed: usize,
}

/// The state of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptState {
    /// A majority granted.
    Won,
    /// The pending votes can still make a majority.
    Pending,
    /// Other acquisitions hold so many nodes that no majority is left. A retry may succeed when
    /// they release.
    Contended,
    /// So many nodes failed that no majority is possible.
    Unreachable,
}

impl Tally {
    /// Counts one vote per node. A configured node without a vote is pending.
    #[must_use]
    pub fn of(majority: Majority, votes: impl IntoIterator<Item = Vote>) -> Self {
        let mut tally = Self {
            majority,
            granted: 0,
            refused: 0,
            failed: 0,
        };
        for vote in votes {
            match vote {
                Vote::Pending => {}
                Vote::Granted => tally.granted += 1,
                Vote::Refused => tally.refused += 1,
                Vote::Failed => tally.failed += 1,
            }
        }
        debug_assert!(
            tally.granted + tally.refused + tally.failed <= majority.configured,
            "one vote per node"
        );
        tally
    }

    /// Returns the number of nodes that granted.
    #[must_use]
    pub const fn granted(&self) -> usize {
        self.granted
    }

    /// Returns the number of nodes that hold the lock for another acquisition.
    #[must_use]
    pub const fn refused(&self) -> usize {
        self.refused
    }

    /// Returns the number of nodes that failed.
    #[must_use]
    pub const fn failed(&self) -> usize {
        self.failed
    }

    /// Returns the number of nodes that have not answered yet.
    #[must_use]
    pub const fn pending(&self) -> usize {
        self.majority
            .configured
            .saturating_sub(self.granted + self.refused + self.failed)
    }

    /// Returns the state of the attempt. Once it is not [`Pending`](AttemptState::Pending), further
    /// answers change it only from [`Contended`](AttemptState::Contended) to
    /// [`Unreachable`](AttemptState::Unreachable).
    #[must_use]
    pub const fn state(&self) -> AttemptState {
        let needed = self.majority.needed();
        if self.granted >= needed {
            AttemptState::Won
        } else if self.granted + self.pending() >= needed {
            AttemptState::Pending
        } else if self.failed > self.majority.spare() {
            AttemptState::Unreachable
        } else {
            AttemptState::Contended
        }
    }

    /// Returns whether a majority may still hold the lock for this acquisition, counting the nodes
    /// that failed or have not answered.
    #[must_use]
    pub const fn is_possible(&self) -> bool {
        self.refused <= self.majority.spare()
    }

    /// Returns how many of the nodes that refused must become free before another attempt can win,
    /// after [`Contended`](AttemptState::Contended).
    ///
    /// It is at least one. Nodes that granted are free, because they were released. Nodes that
    /// failed do not count.
    #[must_use]
    pub const fn wakes_needed(&self) -> usize {
        let needed = self.majority.needed().saturating_sub(self.granted);
        if needed == 0 { 1 } else { needed }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn votes(max: usize) -> impl Strategy<Value = Vec<Vote>> {
        let vote = prop_oneof![
            Just(Vote::Pending),
            Just(Vote::Granted),
            Just(Vote::Refused),
            Just(Vote::Failed)
        ];
        prop::collection::vec(vote, 1..=max)
    }

    fn tally(votes: &[Vote]) -> Tally {
        Tally::of(Majority::of(votes.len()), votes.iter().copied())
    }

    #[test]
    fn the_majority_is_more_than_half_of_the_configured() {
        let needed = [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)];
        for (configured, needed) in needed {
            assert_eq!(Majority::of(configured).needed(), needed);
            assert_eq!(Majority::of(configured).spare(), configured - needed);
        }
    }

    #[test]
    fn two_failures_of_five_are_tolerated_and_three_are_not() {
        use Vote::{Failed, Granted, Pending, Refused};
        let cases = [
            (
                [Granted, Granted, Granted, Pending, Pending],
                AttemptState::Won,
            ),
            (
                [Granted, Granted, Pending, Failed, Failed],
                AttemptState::Pending,
            ),
            // The two nodes that answered agree, but are not a majority.
            (
                [Granted, Granted, Failed, Failed, Failed],
                AttemptState::Unreachable,
            ),
            (
                [Granted, Granted, Refused, Failed, Failed],
                AttemptState::Contended,
            ),
            (
                [Refused, Refused, Refused, Pending, Pending],
                AttemptState::Contended,
            ),
            (
                [Pending, Pending, Failed, Failed, Failed],
                AttemptState::Unreachable,
            ),
        ];
        for (votes, state) in cases {
            assert_eq!(tally(&votes).state(), state, "{votes:?}");
        }
    }

    #[test]
    fn a_node_that_was_never_asked_is_pending() {
        let tally = Tally::of(Majority::of(3), [Vote::Granted]);
        assert_eq!((tally.pending(), tally.state()), (2, AttemptState::Pending));
    }

    #[test]
    fn waiter_retries_when_enough_refusing_nodes_are_free() {
        use Vote::{Failed, Granted, Refused};
        assert_eq!(
            tally(&[Refused, Refused, Refused, Refused, Refused]).wakes_needed(),
            3
        );
        assert_eq!(
            tally(&[Granted, Granted, Refused, Refused, Refused]).wakes_needed(),
            1
        );
        assert_eq!(
            tally(&[Granted, Failed, Refused, Refused, Refused]).wakes_needed(),
            2
        );
    }

    proptest! {
        #[test]
        fn decided_attempts_stay_decided(votes in votes(9), late in prop::collection::vec(0..3_usize, 9)) {
            let before = tally(&votes).state();
            let answers = [Vote::Granted, Vote::Refused, Vote::Failed];
            let settled: Vec<_> = votes
                .iter()
                .zip(late)
                .map(|(vote, late)| if *vote == Vote::Pending { answers[late] } else { *vote })
                .collect();
            let after = tally(&settled).state();
            match before {
                AttemptState::Pending => {}
                AttemptState::Contended => prop_assert!(matches!(after, AttemptState::Contended | AttemptState::Unreachable)),
                before => prop_assert_eq!(before, after),
            }
            prop_assert_ne!(after, AttemptState::Pending);
        }

        #[test]
        fn it_is_open_exactly_while_it_can_be_won(votes in votes(9)) {
            let hopeful: Vec<_> =
                votes.iter().map(|vote| if *vote == Vote::Pending { Vote::Granted } else { *vote }).collect();
            let could_win = tally(&hopeful).state() == AttemptState::Won;
            let state = tally(&votes).state();
            prop_assert_eq!(matches!(state, AttemptState::Won | AttemptState::Pending), could_win);
        }

        #[test]
        fn no_two_attempts_win_the_same_nodes(first in votes(9), second in prop::collection::vec(any::<bool>(), 9)) {
            // A node grants to at most one of the two attempts.
            let second: Vec<_> = first
                .iter()
                .zip(second)
                .map(|(first, wants)| if wants && *first != Vote::Granted { Vote::Granted } else { Vote::Failed })
                .collect();
            prop_assert!(tally(&first).state() != AttemptState::Won || tally(&second).state() != AttemptState::Won);
        }

        #[test]
        fn after_contention_the_refusing_nodes_suffice(votes in votes(9)) {
            let tally = tally(&votes);
            if tally.state() == AttemptState::Contended && tally.pending() == 0 {
                prop_assert!(tally.wakes_needed() <= tally.refused());
                prop_assert!(tally.granted() + tally.wakes_needed() >= Majority::of(votes.len()).needed());
            }
        }
    }
}

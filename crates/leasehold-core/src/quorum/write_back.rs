//! Quorum fencing: one token out of the tokens of several nodes.

use crate::{
    acquisition_id::AcquisitionId,
    fencing::FencingToken,
    quorum::{node::TokenVote, tally::Majority},
};

/// F: what a node keeps per key, apart from the lock, and never lets expire. A node that has none
/// is at token zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The largest token that this node granted or accepted for the key.
    pub token: FencingToken,
    /// The acquisition that it was granted to or accepted from.
    pub owner: AcquisitionId,
}

impl Fence {
    /// The node's part of a grant: the new F, whose token it answers. Its token is one above the
    /// larger of the stored one and `floor`, which may be any number: it only saves write-backs. (A
    /// node with a clock of its own clamps it.)
    #[must_use]
    pub fn granted(stored: Option<Self>, floor: FencingToken, owner: AcquisitionId) -> Self {
        let last = stored
            .map_or(0, |stored| stored.token.get())
            .max(floor.get());
        Self {
            token: FencingToken::new(last + 1),
            owner,
        }
    }

    /// The node's answer to a write-back of `asked`, while it holds the lock for `holder`. If it
    /// accepts, `asked` is the new F.
    ///
    /// It accepts iff the lock is still the writer's and its F is smaller, or is this very one.
    /// *Strictly* smaller: were an equal token of another owner overwritten, both could stand at
    /// it.
    #[must_use]
    pub fn accepts(stored: Option<Self>, holder: Option<AcquisitionId>, asked: Self) -> TokenVote {
        if holder != Some(asked.owner) {
            return TokenVote::Refused(None);
        }
        match stored {
            Some(stored) if stored != asked && stored.token >= asked.token => {
                TokenVote::Refused(Some(stored.token))
            }
            _ => TokenVote::Accepted,
        }
    }
}

/// What to do with the tokens that the nodes granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenChoice {
    /// A majority granted exactly this one: it is the token, in one round trip.
    Stands(FencingToken),
    /// Write this one back to the nodes that granted.
    WriteBack(FencingToken),
}

/// Chooses T, the largest of the granted tokens. `None` while fewer than a majority granted.
#[must_use]
pub fn choose(
    grants: impl IntoIterator<Item = FencingToken>,
    majority: Majority,
) -> Option<TokenChoice> {
    let (mut count, mut largest, mut at_largest) = (0, FencingToken::new(0), 0);
    for token in grants {
        count += 1;
        if token > largest {
            (largest, at_largest) = (token, 0);
        }
        at_largest += usize::from(token == largest);
    }
    if at_largest >= majority.needed() {
        Some(TokenChoice::Stands(largest))
    } else {
        (count >= majority.needed()).then_some(TokenChoice::WriteBack(largest))
    }
}

/// One node's part in a round of the write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// No answer yet, to the acquisition or to the write-back.
    Pending,
    /// It stands at T: it granted exactly T, or accepted it.
    Stands,
    /// It holds for us but has this higher token.
    Higher(FencingToken),
    /// It does not hold for us, or may not vote on tokens, or failed.
    Gone,
}

impl From<TokenVote> for Answer {
    fn from(vote: TokenVote) -> Self {
        match vote {
            TokenVote::Accepted => Self::Stands,
            TokenVote::Refused(Some(higher)) => Self::Higher(higher),
            TokenVote::Refused(None) => Self::Gone,
        }
    }
}

/// Where a round of the write-back stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Round {
    /// A majority stands at T: it is the token.
    Stands,
    /// What is pending can still make a majority at T.
    Open,
    /// No majority at T, because of nodes with higher tokens: the next round is for this one, and
    /// all nodes are asked anew.
    Again(FencingToken),
    /// No majority at any token: release every node.
    Lost,
}

/// Counts the answers of one round for `token`, one per configured node.
///
/// The next round's token is above every higher one that was seen, so a node refuses it only if yet
/// another grant of ours arrived there meanwhile: there are at most as many rounds as nodes.
#[must_use]
pub fn round(
    token: FencingToken,
    answers: impl IntoIterator<Item = Answer>,
    majority: Majority,
) -> Round {
    let (mut pending, mut stands, mut behind, mut highest) = (0, 0, 0, token);
    for answer in answers {
        match answer {
            Answer::Pending => pending += 1,
            Answer::Stands => stands += 1,
            Answer::Higher(higher) => {
                behind += 1;
                highest = highest.max(higher);
            }
            Answer::Gone => {}
        }
    }
    let needed = majority.needed();
    if stands >= needed {
        Round::Stands
    } else if stands + pending >= needed {
        Round::Open
    } else if stands + pending + behind >= needed {
        Round::Again(FencingToken::new(highest.get() + 1))
    } else {
        Round::Lost
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: u128 = 1;
    const OTHER: u128 = 2;

    const fn token(value: u64) -> FencingToken {
        FencingToken::new(value)
    }

    fn fence(value: u64, owner: u128) -> Fence {
        Fence {
            token: token(value),
            owner: AcquisitionId::from(owner),
        }
    }

    #[test]
    fn a_grant_is_above_the_stored_token_and_the_floor() {
        let granted = |stored, floor| {
            Fence::granted(stored, token(floor), AcquisitionId::from(OURS))
                .token
                .get()
        };
        assert_eq!(granted(None, 0), 1);
        assert_eq!(granted(None, 9), 10);
        assert_eq!(granted(Some(fence(9, OTHER)), 9), 10);
        assert_eq!(granted(Some(fence(3, OTHER)), 9), 10);
        assert_eq!(granted(Some(fence(9, OURS)), 3), 10);
    }

    #[test]
    fn a_node_accepts_strictly_and_only_from_the_holder() {
        let ask = |stored, holder: Option<u128>| {
            Fence::accepts(stored, holder.map(AcquisitionId::from), fence(5, OURS))
        };
        assert_eq!(ask(None, Some(OURS)), TokenVote::Accepted);
        assert_eq!(ask(Some(fence(4, OTHER)), Some(OURS)), TokenVote::Accepted);
        assert_eq!(ask(Some(fence(5, OURS)), Some(OURS)), TokenVote::Accepted);
        assert_eq!(
            ask(Some(fence(5, OTHER)), Some(OURS)),
            TokenVote::Refused(Some(token(5)))
        );
        assert_eq!(
            ask(Some(fence(6, OURS)), Some(OURS)),
            TokenVote::Refused(Some(token(6)))
        );
        assert_eq!(
            ask(Some(fence(4, OURS)), Some(OTHER)),
            TokenVote::Refused(None)
        );
        assert_eq!(ask(Some(fence(5, OURS)), None), TokenVote::Refused(None));
    }

    #[test]
    fn a_majority_at_the_largest_needs_no_write_back() {
        let choose = |tokens: &[u64]| choose(tokens.iter().copied().map(token), Majority::of(5));
        assert_eq!(choose(&[7, 7, 7]), Some(TokenChoice::Stands(token(7))));
        assert_eq!(choose(&[7, 3, 7, 7]), Some(TokenChoice::Stands(token(7))));
        assert_eq!(choose(&[7, 7, 8]), Some(TokenChoice::WriteBack(token(8))));
        // A majority at a smaller one is none.
        assert_eq!(
            choose(&[7, 7, 7, 8]),
            Some(TokenChoice::WriteBack(token(8)))
        );
        assert_eq!(choose(&[7, 7]), None);
    }

    #[test]
    fn round_ends_at_majority_retries_above_higher_or_is_lost() {
        use Answer::{Gone, Higher, Pending, Stands};
        let round = |answers: [Answer; 5]| round(token(5), answers, Majority::of(5));
        assert_eq!(
            round([Stands, Stands, Stands, Higher(token(9)), Pending]),
            Round::Stands
        );
        assert_eq!(
            round([Stands, Stands, Pending, Higher(token(9)), Gone]),
            Round::Open
        );
        assert_eq!(
            round([Stands, Stands, Gone, Higher(token(9)), Gone]),
            Round::Again(token(10))
        );
        assert_eq!(
            round([Stands, Higher(token(7)), Gone, Higher(token(9)), Gone]),
            Round::Again(token(10))
        );
        assert_eq!(round([Stands, Stands, Gone, Gone, Gone]), Round::Lost);
    }

    proptest! {
        /// Whatever comes to a node, its token never falls, and never passes from owner to owner
        /// without growing.
        #[test]
        fn tokens_of_a_node_grow_strictly_over_owners(
            steps in prop::collection::vec((any::<bool>(), 0..12_u64, 1..4_u128, any::<bool>()), 0..40),
        ) {
            let (mut stored, mut holder) = (None::<Fence>, None::<AcquisitionId>);
            for (grants, value, owner, expires) in steps {
                if expires {
                    holder = None;
                }
                let before = stored;
                let asked = fence(value, owner);
                if grants && holder.is_none() {
                    stored = Some(Fence::granted(stored, asked.token, asked.owner));
                    holder = Some(asked.owner);
                } else if !grants && Fence::accepts(stored, holder, asked) == TokenVote::Accepted {
                    stored = Some(asked);
                }
                if let (Some(before), Some(after)) = (before, stored) {
                    prop_assert!(after.token > before.token || after == before);
                }
            }
        }

        #[test]
        fn the_next_round_is_above_all_that_was_seen(higher in prop::collection::vec(6..100_u64, 1..4)) {
            let answers = higher.iter().map(|higher| Answer::Higher(token(*higher)));
            let Round::Again(next) = round(token(5), answers, Majority::of(higher.len())) else {
                return Err(TestCaseError::fail("all nodes are still ours"));
            };
            prop_assert!(higher.iter().all(|higher| next > token(*higher)));
        }
    }
}

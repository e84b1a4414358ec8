//! Fencing in a quorum: one token out of the tokens of several nodes.

use crate::{
    backend::acquisition_id::AcquisitionId,
    fencing::FencingToken,
    quorum::{node::TokenVote, tally::Majority},
};

/// The token that a node stores for a key.
///
/// It is stored apart from the lock and never expires. A node without one is at token zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeToken {
    /// The largest token that the node has granted or accepted for the key.
    pub token: FencingToken,
    /// The acquisition that the token was granted to or accepted from.
    pub owner: AcquisitionId,
}

impl NodeToken {
    /// Returns what a node stores when it grants the lock. It answers the grant with this token.
    ///
    /// The token is one above the larger of the stored token and `floor`. Any `floor` is safe: it
    /// only saves write-backs. (A node that uses its own clock limits it.)
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

    /// Returns the node's answer to a write-back of `asked` while `holder` holds the lock. If the
    /// answer is [`Accepted`](TokenVote::Accepted), the node stores `asked`.
    ///
    /// A node accepts if and only if the writer still holds the lock, and the stored token is
    /// smaller or the stored pair is equal. The comparison is *strict*: if an equal token of
    /// another owner were overwritten, both owners could end with the same token.
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

/// The decision about the tokens that the nodes granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenDecision {
    /// A majority granted exactly this token. The token is found in one round trip.
    Agreed(FencingToken),
    /// This token must be written back to the nodes that granted.
    WriteBack(FencingToken),
}

/// Chooses T, the largest granted token. Returns `None` while fewer nodes than a majority have
/// granted.
#[must_use]
pub fn choose_token(
    grants: impl IntoIterator<Item = FencingToken>,
    majority: Majority,
) -> Option<TokenDecision> {
    let (mut count, mut largest, mut at_largest) = (0, FencingToken::new(0), 0);
    for token in grants {
        count += 1;
        if token > largest {
            (largest, at_largest) = (token, 0);
        }
        at_largest += usize::from(token == largest);
    }
    if at_largest >= majority.needed() {
        Some(TokenDecision::Agreed(largest))
    } else {
        (count >= majority.needed()).then_some(TokenDecision::WriteBack(largest))
    }
}

/// The reply of one node in a round of the write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VoteReply {
    /// The node has not answered the acquisition or the write-back yet.
    Pending,
    /// The node granted exactly T, or accepted it.
    Accepted,
    /// The node holds the lock for this acquisition but has this higher token.
    Higher(FencingToken),
    /// The node failed, may not vote on tokens, or does not hold the lock for this acquisition.
    Gone,
}

impl From<TokenVote> for VoteReply {
    fn from(vote: TokenVote) -> Self {
        match vote {
            TokenVote::Accepted => Self::Accepted,
            TokenVote::Refused(Some(higher)) => Self::Higher(higher),
            TokenVote::Refused(None) => Self::Gone,
        }
    }
}

/// The outcome of a round of the write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoundOutcome {
    /// A majority has T. It is the token.
    Agreed,
    /// The pending replies can still make a majority for T.
    Pending,
    /// No majority has T, because of nodes with higher tokens. The next round asks all nodes to
    /// raise their token to this one.
    Retry(FencingToken),
    /// No majority is possible at any token. Every node must be released.
    Lost,
}

/// Counts the replies of one round for `token`, one per configured node.
///
/// The token of the next round is above every higher token seen. A node rejects it only if another
/// grant of this acquisition arrived there meanwhile. There are therefore at most as many rounds as
/// nodes.
#[must_use]
pub fn evaluate_round(
    token: FencingToken,
    answers: impl IntoIterator<Item = VoteReply>,
    majority: Majority,
) -> RoundOutcome {
    let (mut pending, mut stands, mut behind, mut highest) = (0, 0, 0, token);
    for answer in answers {
        match answer {
            VoteReply::Pending => pending += 1,
            VoteReply::Accepted => stands += 1,
            VoteReply::Higher(higher) => {
                behind += 1;
                highest = highest.max(higher);
            }
            VoteReply::Gone => {}
        }
    }
    let needed = majority.needed();
    if stands >= needed {
        RoundOutcome::Agreed
    } else if stands + pending >= needed {
        RoundOutcome::Pending
    } else if stands + pending + behind >= needed {
        RoundOutcome::Retry(FencingToken::new(highest.get() + 1))
    } else {
        RoundOutcome::Lost
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

    fn fence(value: u64, owner: u128) -> NodeToken {
        NodeToken {
            token: token(value),
            owner: AcquisitionId::from(owner),
        }
    }

    #[test]
    fn a_grant_is_above_the_stored_token_and_the_floor() {
        let granted = |stored, floor| {
            NodeToken::granted(stored, token(floor), AcquisitionId::from(OURS))
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
            NodeToken::accepts(stored, holder.map(AcquisitionId::from), fence(5, OURS))
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
        let decide =
            |tokens: &[u64]| choose_token(tokens.iter().copied().map(token), Majority::of(5));
        assert_eq!(decide(&[7, 7, 7]), Some(TokenDecision::Agreed(token(7))));
        assert_eq!(decide(&[7, 3, 7, 7]), Some(TokenDecision::Agreed(token(7))));
        assert_eq!(decide(&[7, 7, 8]), Some(TokenDecision::WriteBack(token(8))));
        // A majority at a smaller token does not decide.
        assert_eq!(
            decide(&[7, 7, 7, 8]),
            Some(TokenDecision::WriteBack(token(8)))
        );
        assert_eq!(decide(&[7, 7]), None);
    }

    #[test]
    fn round_ends_at_majority_retries_above_higher_or_is_lost() {
        use VoteReply::{Accepted, Gone, Higher, Pending};
        let outcome = |answers: [VoteReply; 5]| evaluate_round(token(5), answers, Majority::of(5));
        assert_eq!(
            outcome([Accepted, Accepted, Accepted, Higher(token(9)), Pending]),
            RoundOutcome::Agreed
        );
        assert_eq!(
            outcome([Accepted, Accepted, Pending, Higher(token(9)), Gone]),
            RoundOutcome::Pending
        );
        assert_eq!(
            outcome([Accepted, Accepted, Gone, Higher(token(9)), Gone]),
            RoundOutcome::Retry(token(10))
        );
        assert_eq!(
            outcome([Accepted, Higher(token(7)), Gone, Higher(token(9)), Gone]),
            RoundOutcome::Retry(token(10))
        );
        assert_eq!(
            outcome([Accepted, Accepted, Gone, Gone, Gone]),
            RoundOutcome::Lost
        );
    }

    proptest! {
        /// The token of a node never falls, and never passes from owner to owner
        /// without growing.
        #[test]
        fn tokens_of_a_node_grow_strictly_over_owners(
            steps in prop::collection::vec((any::<bool>(), 0..12_u64, 1..4_u128, any::<bool>()), 0..40),
        ) {
            let (mut stored, mut holder) = (None::<NodeToken>, None::<AcquisitionId>);
            for (grants, value, owner, expires) in steps {
                if expires {
                    holder = None;
                }
                let before = stored;
                let asked = fence(value, owner);
                if grants && holder.is_none() {
                    stored = Some(NodeToken::granted(stored, asked.token, asked.owner));
                    holder = Some(asked.owner);
                } else if !grants && NodeToken::accepts(stored, holder, asked) == TokenVote::Accepted {
                    stored = Some(asked);
                }
                if let (Some(before), Some(after)) = (before, stored) {
                    prop_assert!(after.token > before.token || after == before);
                }
            }
        }

        #[test]
        fn next_round_exceeds_all_tokens_seen(higher in prop::collection::vec(6..100_u64, 1..4)) {
            let answers = higher.iter().map(|higher| VoteReply::Higher(token(*higher)));
            let RoundOutcome::Retry(next) = evaluate_round(token(5), answers, Majority::of(higher.len())) else {
                return Err(TestCaseError::fail("all nodes are still ours"));
            };
            prop_assert!(higher.iter().all(|higher| next > token(*higher)));
        }
    }
}

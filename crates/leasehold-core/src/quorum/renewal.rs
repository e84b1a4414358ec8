//! Renewing on a majority, and taking nodes back.

use crate::{
    clock::{Deadline, Timestamp},
    quorum::tally::{Standing, Tally},
};

/// What the answers to a renewal mean. In its tally, *granted* is a node that renewed, *refused*
/// one that no longer holds for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewed {
    /// A majority renewed: the deadline moves to the new [`validity`](crate::quorum::validity).
    Extended,
    /// What is pending may still make a majority.
    Open,
    /// No majority, but none against us either: the deadline stays where it was; try again.
    Unchanged,
    /// So many nodes do not hold for us that no majority can: lost, final.
    Lost,
}

/// Judges the answers to a renewal. Nodes that do not hold for us should be [healed](may_heal).
#[must_use]
pub const fn renewal(tally: &Tally) -> Renewed {
    if !tally.is_possible() {
        return Renewed::Lost;
    }
    match tally.standing() {
        Standing::Won => Renewed::Extended,
        Standing::Open => Renewed::Open,
        Standing::Contended | Standing::OutOfReach => Renewed::Unchanged,
    }
}

/// Whether a node that does not hold for us may be acquired again, for the same acquisition: only
/// while a majority was held without a break, which is what its `validity` says. Ask when the
/// node's grant is *in hand*, not when it is sent for: until then the others may have run out, and
/// another may have come and gone.
///
/// The healed node then counts like any other. Its token is larger than the one it has, but the
/// acquisition keeps its own: a majority stood at it once, and no node's token falls.
#[must_use]
pub fn may_heal(validity: Deadline, now: Timestamp) -> bool {
    !validity.is_past(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quorum::tally::{
        Majority,
        Vote::{self, Failed, Granted, Pending, Refused},
    };

    fn judge(votes: [Vote; 5]) -> Renewed {
        renewal(&Tally::of(Majority::of(5), votes))
    }

    #[test]
    fn a_majority_of_the_configured_nodes_renews() {
        assert_eq!(
            judge([Granted, Granted, Granted, Pending, Refused]),
            Renewed::Extended
        );
        assert_eq!(
            judge([Granted, Granted, Pending, Failed, Refused]),
            Renewed::Open
        );
        assert_eq!(
            judge([Granted, Granted, Failed, Failed, Failed]),
            Renewed::Unchanged
        );
    }

    #[test]
    fn only_answers_can_lose_it() {
        assert_eq!(
            judge([Failed, Failed, Failed, Failed, Failed]),
            Renewed::Unchanged
        );
        assert_eq!(
            judge([Refused, Refused, Failed, Failed, Failed]),
            Renewed::Unchanged
        );
        assert_eq!(
            judge([Refused, Refused, Refused, Pending, Pending]),
            Renewed::Lost
        );
        assert_eq!(
            judge([Granted, Granted, Refused, Refused, Refused]),
            Renewed::Lost
        );
    }

    #[test]
    fn nothing_is_healed_from_the_deadline_on() {
        let validity = Deadline::at(Timestamp::from_nanos(10));
        assert!(may_heal(validity, Timestamp::from_nanos(9)));
        assert!(!may_heal(validity, Timestamp::from_nanos(10)));
    }
}

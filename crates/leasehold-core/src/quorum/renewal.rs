//! Renewal on a majority, and reacquisition of nodes.

use crate::{
    clock::{Deadline, Timestamp},
    quorum::tally::{AttemptState, Tally},
};

/// The outcome of a renewal.
///
/// In the tally of a renewal, *granted* is a node that renewed, and *refused* is a node that no
/// longer holds the lock for this acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewed {
    /// A majority renewed. The deadline moves to the new [`validity`](crate::quorum::validity).
    Extended,
    /// The pending answers may still make a majority.
    Pending,
    /// A majority neither renewed nor refused. The deadline stays where it was, and the renewal is
    /// retried.
    Unchanged,
    /// So many nodes refused that no majority is possible. The loss is final.
    Lost,
}

/// Evaluates the answers to a renewal. Nodes that refused should be [acquired
/// again](may_reacquire).
#[must_use]
pub const fn renewal(tally: &Tally) -> Renewed {
    if !tally.is_possible() {
        return Renewed::Lost;
    }
    match tally.state() {
        AttemptState::Won => Renewed::Extended,
        AttemptState::Pending => Renewed::Pending,
        AttemptState::Contended | AttemptState::Unreachable => Renewed::Unchanged,
    }
}

/// Returns whether a node that no longer holds the lock may be acquired again for the same
/// acquisition.
///
/// This is allowed only while a majority has held the lock without interruption, which its
/// `validity` says. Call this when the node's grant has *arrived*, not when it is requested. Until
/// then the other grants may have expired, and another holder may have come and gone.
///
/// The node then counts like any other. Its token is larger than that of the acquisition, which
/// keeps its own: a majority had it once, and no node's token falls.
#[must_use]
pub fn may_reacquire(validity: Deadline, now: Timestamp) -> bool {
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
            Renewed::Pending
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
    fn no_node_is_reacquired_after_the_deadline() {
        let validity = Deadline::at(Timestamp::from_nanos(10));
        assert!(may_reacquire(validity, Timestamp::from_nanos(9)));
        assert!(!may_reacquire(validity, Timestamp::from_nanos(10)));
    }
}

//! [`validity`]: the deadline until which a majority of the nodes holds the lock.

use crate::{clock::Deadline, quorum::tally::Majority};

/// Returns the k-th largest of the nodes' deadlines, where k is the majority. Until then at least k
/// nodes hold the lock. Returns `None` while fewer than k nodes have granted.
///
/// Each node's deadline is that of
/// [`Request::deadline_from`](crate::backend::Request::deadline_from). It is counted from before
/// *that node's* request was sent, and is already shortened by the drift (1 % and 2 ms by default),
/// which is therefore not subtracted again.
///
/// The published algorithm counts all nodes from the start of the first request, so that one slow
/// node shortens the time of the fast ones. Counting each node from its own start is as safe. It
/// also works for renewals, where nodes are at different points of their TTLs.
#[must_use]
pub fn validity(
    deadlines: impl IntoIterator<Item = Deadline>,
    majority: Majority,
) -> Option<Deadline> {
    let mut deadlines: Vec<_> = deadlines.into_iter().collect();
    deadlines.sort_unstable_by(|a, b| b.cmp(a));
    deadlines.get(majority.needed() - 1).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;

    fn at(nanos: u64) -> Deadline {
        Deadline::at(Timestamp::from_nanos(nanos))
    }

    #[test]
    fn it_is_the_kth_largest() {
        let of_five =
            |deadlines: &[u64]| validity(deadlines.iter().copied().map(at), Majority::of(5));
        assert_eq!(of_five(&[50, 10, 40, 20, 30]), Some(at(30)));
        assert_eq!(of_five(&[50, 10, 40]), Some(at(10)));
        assert_eq!(of_five(&[50, 40]), None);
    }

    proptest! {
        #[test]
        fn before_it_a_majority_holds_and_at_it_none_does(
            deadlines in prop::collection::vec(1..100_u64, 0..=7), configured in 1..=7_usize,
        ) {
            let deadlines = &deadlines[..deadlines.len().min(configured)];
            let majority = Majority::of(configured);
            let holding = |now: u64| deadlines.iter().filter(|deadline| **deadline > now).count();
            match validity(deadlines.iter().copied().map(at), majority) {
                None => prop_assert!(deadlines.len() < majority.needed()),
                Some(until) => {
                    let until = until.moment().as_nanos();
                    prop_assert!(holding(until - 1) >= majority.needed());
                    prop_assert!(holding(until) < majority.needed());
                }
            }
        }
    }
}

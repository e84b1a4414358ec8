//! [`MarkerCounts`]: the markers that the session holds, and the acquisitions that need each.

use std::collections::HashMap;

use crate::job::AcquisitionKey;

/// Reference counts of the markers. The server has each marker once per session.
#[derive(Debug, Default)]
pub(super) struct MarkerCounts(HashMap<i64, Vec<AcquisitionKey>>);

impl MarkerCounts {
    /// Adds a user of the marker. Returns whether the marker must be set.
    pub(super) fn add(&mut self, marker: i64, user: AcquisitionKey) -> bool {
        let users = self.0.entry(marker).or_default();
        let first = users.is_empty();
        if !users.contains(&user) {
            users.push(user);
        }
        first
    }

    /// Removes a user of the marker. Returns whether the marker must be cleared.
    pub(super) fn remove(&mut self, marker: i64, user: AcquisitionKey) -> bool {
        let Some(users) = self.0.get_mut(&marker) else {
            return false;
        };
        users.retain(|other| *other != user);
        let last = users.is_empty();
        if last {
            self.0.remove(&marker);
        }
        last
    }

    /// Records that the server does not have the marker.
    pub(super) fn forget(&mut self, marker: i64) {
        self.0.remove(&marker);
    }

    pub(super) fn is_set(&self, marker: i64) -> bool {
        self.0.contains_key(&marker)
    }

    pub(super) fn is_set_for(&self, marker: i64, user: AcquisitionKey) -> bool {
        self.0
            .get(&marker)
            .is_some_and(|users| users.contains(&user))
    }

    pub(super) fn is_only_for(&self, marker: i64, user: AcquisitionKey) -> bool {
        self.0.get(&marker).is_some_and(|users| users[..] == [user])
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::AdvisoryKey;

    #[test]
    fn waiter_marker_is_removed_with_its_last_user_only() {
        let acquisition = |number| AcquisitionKey {
            key: AdvisoryKey::Int64(7),
            number,
        };
        let (one, other, stranger) = (acquisition(1), acquisition(2), acquisition(3));
        let mut counts = MarkerCounts::default();
        assert!(counts.add(9, one) && !counts.add(9, one));
        assert!(counts.is_only_for(9, one));
        assert!(!counts.add(9, other));
        assert!(!counts.remove(9, stranger) && !counts.remove(9, one));
        // A user that was removed before takes it from no other.
        assert!(!counts.remove(9, one));
        assert!(counts.is_set_for(9, other) && !counts.is_set_for(9, one));
        assert!(counts.remove(9, other) && !counts.is_set(9));
        assert!(!counts.remove(9, other));
        // The server has cleared it, or never had it.
        assert!(counts.add(9, one) && !counts.add(9, other));
        counts.forget(9);
        assert!(!counts.is_set(9) && !counts.remove(9, one) && counts.add(9, other));
    }
}

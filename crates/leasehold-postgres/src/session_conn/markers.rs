//! [`MarkerCounts`]: which markers are up, and for whom.

use std::collections::HashMap;

use crate::batch::Name;

/// The server has each sign once, whatever the number of those in this session who need it.
#[derive(Debug, Default)]
pub(super) struct MarkerCounts(HashMap<i64, Vec<Name>>);

impl MarkerCounts {
    /// `user` needs it; whether it is to be put up.
    pub(super) fn add(&mut self, sign: i64, user: Name) -> bool {
        let users = self.0.entry(sign).or_default();
        let first = users.is_empty();
        if !users.contains(&user) {
            users.push(user);
        }
        first
    }

    /// `user` needs it no longer; whether it is to be taken down.
    pub(super) fn remove(&mut self, sign: i64, user: Name) -> bool {
        let Some(users) = self.0.get_mut(&sign) else {
            return false;
        };
        users.retain(|other| *other != user);
        let last = users.is_empty();
        if last {
            self.0.remove(&sign);
        }
        last
    }

    /// It is not up, whoever needs it.
    pub(super) fn fell(&mut self, sign: i64) {
        self.0.remove(&sign);
    }

    pub(super) fn is_up(&self, sign: i64) -> bool {
        self.0.contains_key(&sign)
    }

    pub(super) fn is_up_for(&self, sign: i64, user: Name) -> bool {
        self.0.get(&sign).is_some_and(|users| users.contains(&user))
    }

    pub(super) fn is_up_for_nobody_but(&self, sign: i64, user: Name) -> bool {
        self.0.get(&sign).is_some_and(|users| users[..] == [user])
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
        let name = |number| Name {
            key: AdvisoryKey::Int64(7),
            number,
        };
        let (one, other, stranger) = (name(1), name(2), name(3));
        let mut board = MarkerCounts::default();
        assert!(board.add(9, one) && !board.add(9, one));
        assert!(board.is_up_for_nobody_but(9, one));
        assert!(!board.add(9, other));
        assert!(!board.remove(9, stranger) && !board.remove(9, one));
        // Who has lost it already takes it from nobody.
        assert!(!board.remove(9, one));
        assert!(board.is_up_for(9, other) && !board.is_up_for(9, one));
        assert!(board.remove(9, other) && !board.is_up(9));
        assert!(!board.remove(9, other));
        // The server has taken it down, or never had it up.
        assert!(board.add(9, one) && !board.add(9, other));
        board.fell(9);
        assert!(!board.is_up(9) && !board.remove(9, one) && board.add(9, other));
    }
}

//! [`ContendedHint`]: the locks that the last acquisition found contended.
//!
//! If a lock is likely to be taken, a waiter queues in the session of waiters at once, without an
//! attempt in the session of its TTL before. A client that does not wait reads the directory before
//! it creates a node. A wrong hint costs one round trip.
//!
//! Measured with 16 tasks in 4 processes that contend for one lock (`bench --scenario contenders`):
//! a grant costs the servers 8.7 requests, of which 3 are transactions. Without the hint it costs
//! 11.9 requests, of which 5 are transactions, and three sequence numbers instead of two.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// The most locks that are remembered.
const CAPACITY: usize = 10_000;

/// The contended locks, by their lanes.
#[derive(Debug, Default)]
pub(crate) struct ContendedHint(Mutex<HashSet<u64>>);

impl ContendedHint {
    /// Returns whether the lock was contended the last time.
    pub(crate) fn is_set(&self, lane: u64) -> bool {
        let lanes = self.lock();
        !lanes.is_empty() && lanes.contains(&lane)
    }

    /// Records whether the lock is contended.
    pub(crate) fn note(&self, lane: u64, contended: bool) {
        let mut lanes = self.lock();
        if !contended {
            lanes.remove(&lane);
            return;
        }
        if lanes.len() >= CAPACITY {
            lanes.clear();
        }
        lanes.insert(lane);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_is_what_was_noted_last_for_this_lock() {
        let hint = ContendedHint::default();
        assert!(!hint.is_set(1));
        hint.note(1, true);
        assert!(hint.is_set(1) && !hint.is_set(2));
        hint.note(1, false);
        assert!(!hint.is_set(1));
    }

    #[test]
    fn hint_remembers_a_bounded_number_of_locks() {
        let hint = ContendedHint::default();
        for lane in 0..=CAPACITY as u64 {
            hint.note(lane, true);
        }
        assert!(hint.is_set(CAPACITY as u64) && hint.lock().len() <= CAPACITY);
    }
}

//! [`UsedUp`]: the locks whose directory has no sequence numbers left.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// How many are remembered.
const MOST: usize = 10_000;

/// Locks by their lanes, each with the transaction of a node whose number was too high. What is forgotten costs one more
/// such node.
#[derive(Debug, Default)]
pub(crate) struct UsedUp(Mutex<HashMap<u64, i64>>);

impl UsedUp {
    /// The transaction that showed it.
    pub(crate) fn since(&self, lane: u64) -> Option<i64> {
        self.lock().get(&lane).copied()
    }

    pub(crate) fn note(&self, lane: u64, czxid: i64) {
        let mut lanes = self.lock();
        if lanes.len() >= MOST {
            lanes.clear();
        }
        lanes.insert(lane, czxid);
    }

    /// The directory has begun anew.
    pub(crate) fn forget(&self, lane: u64) {
        self.lock().remove(&lane);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, i64>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

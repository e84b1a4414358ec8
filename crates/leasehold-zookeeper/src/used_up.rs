//! [`UsedUp`]: the locks whose directory has no sequence numbers left.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// How many are remembered.
const MOST: usize = 10_000;

/// Locks by their lanes, each with the transaction that created a node with too high a number. A
/// lock that is forgotten costs one more such node.
#[derive(Debug, Default)]
pub(crate) struct UsedUp(Mutex<HashMap<u64, i64>>);

impl UsedUp {
    /// Returns the transaction that created a node with too high a number.
    pub(crate) fn since(&self, lane: u64) -> Option<i64> {
        self.lock().get(&lane).copied()
    }

    /// Records a transaction that created a node with too high a number.
    pub(crate) fn note(&self, lane: u64, czxid: i64) {
        let mut lanes = self.lock();
        if lanes.len() >= MOST {
            lanes.clear();
        }
        lanes.insert(lane, czxid);
    }

    /// Forgets a lock whose directory was made again.
    pub(crate) fn forget(&self, lane: u64) {
        self.lock().remove(&lane);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, i64>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

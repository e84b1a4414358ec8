//! [`Crowd`]: which locks were found taken, so that a try looks before it queues.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// How many are remembered.
const MOST: usize = 10_000;

/// Locks that the last try found taken, by their lanes. A hint: that it is wrong costs a round
/// trip.
#[derive(Debug, Default)]
pub(crate) struct Crowd(Mutex<HashSet<u64>>);

impl Crowd {
    pub(crate) fn is_taken(&self, lane: u64) -> bool {
        let taken = self.lock();
        !taken.is_empty() && taken.contains(&lane)
    }

    pub(crate) fn note(&self, lane: u64, taken: bool) {
        let mut lanes = self.lock();
        if !taken {
            lanes.remove(&lane);
            return;
        }
        if lanes.len() >= MOST {
            lanes.clear();
        }
        lanes.insert(lane);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

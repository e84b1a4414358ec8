//! [`Table`]: all slots, in shards.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, PoisonError},
};

use leasehold_core::{LockKey, Mode};

use super::slot::Slot;

/// Enough that the threads of a large machine seldom meet on one.
const SHARDS: usize = 64;

#[derive(Debug)]
pub(super) struct Table(Box<[Mutex<Shard>]>);

/// A semaphore and a mutex of the same name do not touch: two name spaces.
#[derive(Debug, Default)]
struct Shard {
    locks: HashMap<LockKey, Slot>,
    permits: HashMap<LockKey, Slot>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    /// Runs `work` on the key's slot, which exists only while it is of use.
    pub(super) fn with_slot<R>(
        &self,
        key: &LockKey,
        mode: Mode,
        work: impl FnOnce(&mut Slot) -> R,
    ) -> R {
        // Nothing in here can panic half-way and leave a slot in disorder: a poisoned shard is as
        // good as any.
        let mut shard = self.0[shard_of(key)]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let slots = if mode.is_permit() {
            &mut shard.permits
        } else {
            &mut shard.locks
        };
        match slots.entry(key.clone()) {
            Entry::Occupied(mut slot) => {
                let result = work(slot.get_mut());
                if slot.get().is_empty() {
                    slot.remove();
                }
                result
            }
            Entry::Vacant(vacant) => {
                let mut slot = Slot::default();
                let result = work(&mut slot);
                if !slot.is_empty() {
                    vacant.insert(slot);
                }
                result
            }
        }
    }

    /// How many keys are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0
            .iter()
            .map(|shard| {
                let shard = shard.lock().unwrap();
                shard.locks.len() + shard.permits.len()
            })
            .sum()
    }
}

/// FNV-1a. The maps have a keyed hash of their own; a bad choice of shard costs only speed.
fn shard_of(key: &LockKey) -> usize {
    let hash = key
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    (hash >> 32) as usize % SHARDS
}

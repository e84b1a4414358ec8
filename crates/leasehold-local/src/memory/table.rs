//! [`Table`]: the lock entries of all keys, in shards.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, PoisonError},
};

use leasehold_core::{LockKey, Mode};

use super::{lock_entry::LockEntry, record_entry::Records};

/// Large enough that the threads of a large machine rarely contend for one shard.
const SHARDS: usize = 64;

#[derive(Debug)]
pub(super) struct Table(Box<[Mutex<Shard>]>);

/// A semaphore and a mutex of the same name are independent, so there are two name spaces.
#[derive(Debug, Default)]
struct Shard {
    locks: HashMap<LockKey, LockEntry>,
    permits: HashMap<LockKey, LockEntry>,
    records: Records,
}

impl Table {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    /// Runs `work` on the entry of `key`. An entry without holders and waiters is removed.
    pub(super) fn with_entry<R>(
        &self,
        key: &LockKey,
        mode: Mode,
        work: impl FnOnce(&mut LockEntry) -> R,
    ) -> R {
        self.with_record(key, mode, |entry, _| work(entry))
    }

    /// Runs `work` on the entry of `key` and on the records of its shard.
    pub(super) fn with_record<R>(
        &self,
        key: &LockKey,
        mode: Mode,
        work: impl FnOnce(&mut LockEntry, &mut Records) -> R,
    ) -> R {
        // `work` does not panic half-way, so the data of a poisoned shard is consistent.
        let mut shard = self.0[shard_of(key)]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Shard {
            locks,
            permits,
            records,
        } = &mut *shard;
        let entries = if mode.is_permit() { permits } else { locks };
        let work = |entry: &mut LockEntry| {
            let result = work(entry, records);
            // A permit of the same name is not the lock.
            if !mode.is_permit() {
                records.lock_changed(key, entry);
            }
            result
        };
        match entries.entry(key.clone()) {
            Entry::Occupied(mut entry) => {
                let result = work(entry.get_mut());
                if entry.get().is_empty() {
                    entry.remove();
                }
                result
            }
            Entry::Vacant(vacant) => {
                let mut entry = LockEntry::default();
                let result = work(&mut entry);
                if !entry.is_empty() {
                    vacant.insert(entry);
                }
                result
            }
        }
    }

    /// Returns the number of entries, records included.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0
            .iter()
            .map(|shard| {
                let shard = shard.lock().unwrap();
                shard.locks.len() + shard.permits.len() + shard.records.len()
            })
            .sum()
    }
}

/// Returns the shard of `key`, by FNV-1a. A poor distribution costs only speed: the maps in the
/// shards use a keyed hash.
fn shard_of(key: &LockKey) -> usize {
    let hash = key
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    (hash >> 32) as usize % SHARDS
}

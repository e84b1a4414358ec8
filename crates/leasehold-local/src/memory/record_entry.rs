//! [`Records`]: the records of one shard, each with its watches.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use leasehold_core::{
    LockKey, Timestamp,
    backend::{RecordWrite, support::StoredRecord},
};
use tokio::sync::{Notify, futures::OwnedNotified};

use super::{grant::Grant, lock_entry::LockEntry};

/// The records of one shard.
#[derive(Debug, Default)]
pub(super) struct Records(HashMap<LockKey, RecordEntry>);

/// The record of one key, and those who watch it.
#[derive(Debug, Default)]
struct RecordEntry {
    stored: Option<StoredRecord>,
    changed: Arc<Notify>,
    watches: usize,
    /// Whether the writer held the lock when this was last checked.
    is_held: bool,
}

impl RecordEntry {
    /// Returns whether the writer of the record holds the lock, and until when unless it is
    /// renewed.
    fn held_until(&self, entry: &mut LockEntry) -> Option<Timestamp> {
        let stored = self.stored.as_ref()?;
        let holder = entry.holders.by_owner_mut(stored.owner)?;
        Some(holder.expires)
    }
}

impl Records {
    /// Notifies the watches of `key` if the writer of the record no longer holds the lock.
    pub(super) fn lock_changed(&mut self, key: &LockKey, entry: &mut LockEntry) {
        if self.0.is_empty() {
            return;
        }
        if let Some(record) = self.0.get_mut(key) {
            let was_held = record.is_held;
            record.is_held = record.held_until(entry).is_some();
            if was_held && !record.is_held {
                record.changed.notify_waiters();
            }
        }
    }

    pub(super) fn write(&mut self, grant: &Grant, write: &RecordWrite, now: SystemTime) -> u64 {
        let request = &grant.request;
        let record = self.0.entry(request.key().clone()).or_default();
        if let Some(stored) = &record.stored
            && stored.supersedes(request.owner(), write.sequence())
        {
            return stored.version;
        }
        let after = StoredRecord::after(record.stored.as_ref(), request, grant.token, write, now);
        let version = after.version;
        (record.stored, record.is_held) = (Some(after), true);
        record.changed.notify_waiters();
        version
    }

    /// Returns the number of records, watched keys without a record included.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the record of `key`, and until when its writer holds the lock unless it is renewed.
    pub(super) fn read(
        &self,
        key: &LockKey,
        entry: &mut LockEntry,
    ) -> (Option<StoredRecord>, Option<Timestamp>) {
        match self.0.get(key) {
            Some(record) => (record.stored.clone(), record.held_until(entry)),
            None => (None, None),
        }
    }

    /// Begins a watch of `key`. Call [`end_watch`](Self::end_watch) once for it.
    pub(super) fn begin_watch(&mut self, key: &LockKey) -> OwnedNotified {
        let record = self.0.entry(key.clone()).or_default();
        record.watches += 1;
        Arc::clone(&record.changed).notified_owned()
    }

    pub(super) fn end_watch(&mut self, key: &LockKey) {
        if let Some(record) = self.0.get_mut(key) {
            record.watches -= 1;
            if record.watches == 0 && record.stored.is_none() {
                self.0.remove(key);
            }
        }
    }
}

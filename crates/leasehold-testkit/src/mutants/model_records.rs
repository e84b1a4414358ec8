//! The records of the model.

use std::{collections::HashMap, time::SystemTime};

use leasehold_core::{
    AcquisitionId, Error, ErrorKind, FencingToken, LockKey, Record, Result,
    backend::{BoxFuture, RecordRead, RecordReading, RecordWrite, Request, support::StoredRecord},
};
use tokio::sync::watch;

use super::bug::Bug;

/// The number of bytes that [`Bug::RecordTruncated`] stores.
const TRUNCATED: usize = 4 * 1024;

/// The records of all keys.
#[derive(Debug, Default)]
pub(super) struct ModelRecords {
    slots: HashMap<Vec<u8>, Slot>,
    /// The records that each handle has read, for a bug.
    cached: HashMap<(u64, LockKey), Option<Record>>,
}

#[derive(Debug)]
struct Slot {
    stored: Option<StoredRecord>,
    changed: watch::Sender<()>,
}

impl ModelRecords {
    fn slot(&mut self, key: &LockKey, bug: Option<Bug>) -> &mut Slot {
        let mut name = key.as_bytes().to_vec();
        if bug == Some(Bug::RecordNamesCollide) {
            name.iter_mut()
                .filter(|byte| !byte.is_ascii_alphanumeric())
                .for_each(|byte| *byte = b'_');
        }
        self.slots.entry(name).or_insert_with(|| Slot {
            stored: None,
            changed: watch::Sender::new(()),
        })
    }

    /// Makes a write of a holder. Returns the version.
    pub(super) fn write(
        &mut self,
        request: &Request,
        token: Option<FencingToken>,
        write: &RecordWrite,
        bug: Option<Bug>,
    ) -> u64 {
        let slot = self.slot(request.key(), bug);
        if let Some(stored) = &slot.stored {
            let ours = stored.owner == request.owner();
            let is_superseded = match bug {
                Some(Bug::RecordOrderIgnored) => ours && stored.sequence == write.sequence(),
                Some(Bug::RecordRetryCounts) => ours && stored.sequence > write.sequence(),
                _ => stored.supersedes(request.owner(), write.sequence()),
            };
            if is_superseded {
                return stored.version;
            }
        }
        let now = SystemTime::now();
        let mut after = StoredRecord::after(slot.stored.as_ref(), request, token, write, now);
        if let (Some(Bug::RecordTruncated), Some(value)) = (bug, &mut after.value) {
            value.truncate(TRUNCATED);
        }
        let version = after.version;
        let forgets = bug == Some(Bug::RecordVersionRestarts) && after.value.is_none();
        slot.stored = (!forgets).then_some(after);
        slot.changed.send_replace(());
        version
    }

    /// Clears the record of `key` without a write, for bugs.
    pub(super) fn forget(&mut self, key: &LockKey, bug: Option<Bug>) {
        if let Some(stored) = &mut self.slot(key, bug).stored {
            stored.value = None;
        }
    }

    /// Notifies the watches of `key` of the value of a leader.
    pub(super) fn leader_changed(&mut self, key: &LockKey, bug: Option<Bug>) {
        self.slot(key, bug).changed.send_replace(());
    }

    /// Notifies the watches of `key` that a hold of the lock has ended.
    pub(super) fn hold_ended(&mut self, key: &LockKey, bug: Option<Bug>) {
        if bug != Some(Bug::RecordHoldEndUnreported) {
            self.slot(key, bug).changed.send_replace(());
        }
    }

    /// Answers a read of `handle`. `holds` says whether an acquisition holds the lock.
    pub(super) fn read(
        &mut self,
        handle: u64,
        read: &RecordRead,
        holds: impl Fn(AcquisitionId) -> bool,
        bug: Option<Bug>,
    ) -> RecordReading {
        let slot = self.slot(&read.key, bug);
        let must_hold = read.while_held && bug != Some(Bug::RecordOutlivesHold);
        let mut record = slot
            .stored
            .clone()
            .filter(|stored| !must_hold || holds(stored.owner))
            .and_then(StoredRecord::into_record);
        if bug == Some(Bug::RecordReadIsCached) && !read.watch && !read.while_held {
            let cached = self.cached.entry((handle, read.key.clone()));
            record = cached.or_insert(record).clone();
        }
        let mut reading = RecordReading::new(record);
        if read.watch && bug != Some(Bug::RecordWatchArmedLate) {
            reading.changed = Some(self.watch(&read.key, bug));
        }
        reading
    }

    /// Arms a watch of the record of `key`.
    pub(super) fn watch(&mut self, key: &LockKey, bug: Option<Bug>) -> BoxFuture<'static, ()> {
        let mut changed = self.slot(key, bug).changed.subscribe();
        Box::pin(async move { drop(changed.changed().await) })
    }
}

/// Returns the error of a write of a lease that holds the lock no longer.
pub(super) fn not_held() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the lock has expired or was released, and another client may hold it",
    )
}

/// Returns an error unless a lease of this request may write records.
pub(super) fn check_mode(request: &Request, bug: Option<Bug>) -> Result<()> {
    if request.mode() == leasehold_core::Mode::Exclusive || bug == Some(Bug::RecordByReader) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "only the holder of an exclusive lock writes its record",
    ))
}

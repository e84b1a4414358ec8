//! The plans of jobs: the rows that a job adds to a statement, or its immediate answer.

use crate::{
    job::{AcquireJob, AcquisitionKey, Answer, JobResult, WaiterMarkers},
    keys::AdvisoryKey,
    session_connection::{HeldLock, RowPurpose, SessionConnection, StatementBatch, refused},
    statement::{Op, Row},
};

impl SessionConnection {
    /// Plans an attempt. Returns the answer if it is already known.
    pub(super) fn plan_acquire(
        &mut self,
        acquire: &AcquireJob,
        key: AdvisoryKey,
        shared: bool,
        place: usize,
        batch: &mut StatementBatch,
    ) -> Option<Answer> {
        let waiter_marker = acquire.markers.map_or_else(
            || {
                if acquire.yielding {
                    key.waiter_marker()
                } else {
                    0
                }
            },
            |markers| markers.waits,
        );
        let writer_marker = if shared { key.writer_marker() } else { 0 };
        self.set_markers(acquire, batch);
        // The server does not show a session its own markers.
        if shared && self.markers.is_set(writer_marker) {
            return Some(refused(acquire.markers.is_some()));
        }
        let beside = if shared {
            writer_marker
        } else {
            acquire
                .markers
                .and_then(|markers| markers.writer)
                .unwrap_or(0)
        };
        match self.held.get_mut(&key) {
            Some(HeldLock::Shared { readers, .. }) if shared => {
                readers.push(acquire.acquisition);
                let purpose = RowPurpose::Join {
                    acquisition: acquire.acquisition,
                    key,
                    markers: acquire.markers,
                };
                batch.add(
                    Row {
                        op: Op::Join,
                        key,
                        waiter_marker,
                        beside,
                    },
                    Some(place),
                    key,
                    purpose,
                );
                return None;
            }
            Some(_) => return Some(refused(acquire.markers.is_some())),
            None => {}
        }
        let acquisition = acquire.acquisition;
        let sole = acquire.markers.is_some_and(|markers| {
            markers
                .each()
                .all(|marker| self.markers.is_only_for(marker, acquisition))
        });
        let op = match (shared, sole, acquire.yielding) {
            (false, true, _) => Op::ExclusiveOfWaiter,
            (true, true, _) => Op::SharedOfWaiter,
            (false, false, true) => Op::ExclusiveYielding,
            (true, false, true) => Op::SharedYielding,
            (false, false, false) => Op::Exclusive,
            (true, false, false) => Op::Shared,
        };
        let purpose = RowPurpose::Acquire {
            acquisition,
            key,
            markers: acquire.markers,
            sole,
        };
        batch.add(
            Row {
                op,
                key,
                waiter_marker,
                beside,
            },
            Some(place),
            key,
            purpose,
        );
        let held = if shared {
            HeldLock::Shared {
                readers: vec![acquisition],
                token: None,
            }
        } else {
            HeldLock::Exclusive(acquisition)
        };
        self.held.insert(key, held);
        None
    }

    /// Plans a release. Returns the answer if it is already known.
    pub(super) fn plan_release(
        &mut self,
        acquisition: AcquisitionKey,
        key: AdvisoryKey,
        semaphore: Option<AdvisoryKey>,
        place: usize,
        batch: &mut StatementBatch,
    ) -> Option<Answer> {
        let op = match self.held.get_mut(&key) {
            Some(HeldLock::Exclusive(held)) if *held == acquisition => Op::Unlock,
            Some(HeldLock::Permit {
                acquisition: held, ..
            }) if *held == acquisition => Op::UnlockPermit,
            Some(HeldLock::Shared { readers, .. }) if readers.contains(&acquisition) => {
                readers.retain(|held| *held != acquisition);
                if !readers.is_empty() {
                    return Some(Ok(JobResult::Released(true)));
                }
                Op::UnlockShared
            }
            _ => return Some(Ok(JobResult::Released(false))),
        };
        let waited_for = semaphore.unwrap_or(key);
        let row = Row {
            op,
            key,
            waiter_marker: waited_for.waiter_marker(),
            beside: waited_for.bits(),
        };
        batch.add(row, Some(place), waited_for, RowPurpose::Release);
        if let Some(HeldLock::Permit { count, .. }) = self.held.remove(&key) {
            self.clear_marker(count, acquisition, waited_for, batch);
        }
        self.clear_record_marker(key, acquisition, batch);
        if let Some(mark) = self.revoked.remove(&key) {
            self.clear_marker(mark, AcquisitionKey::of_revocation(key), waited_for, batch);
        }
        None
    }

    /// Sets the markers that are not set. A waiter loses its markers when another acquisition of
    /// its session is granted the lock.
    pub(super) fn set_markers(&mut self, acquire: &AcquireJob, batch: &mut StatementBatch) {
        let Some(markers) = acquire.markers else {
            return;
        };
        for marker in markers.each() {
            if self.markers.add(marker, acquire.acquisition) {
                batch.add_marker(
                    Op::SetMarker,
                    marker,
                    markers.key,
                    RowPurpose::SetMarker(marker),
                );
            }
        }
    }

    /// Clears the markers of a waiter, if no other acquisition of the session needs them.
    pub(super) fn clear_markers(
        &mut self,
        acquisition: AcquisitionKey,
        markers: WaiterMarkers,
        batch: &mut StatementBatch,
    ) {
        self.clear_marker(markers.waits, acquisition, markers.key, batch);
        if let Some(writer) = markers.writer
            && self.markers.remove(writer, acquisition)
        {
            let row = Row {
                op: Op::ClearWriterMarker,
                key: markers.key,
                waiter_marker: markers.waits,
                beside: writer,
            };
            batch.add(row, None, markers.key, RowPurpose::ClearMarker);
        }
    }

    /// Clears the marker of the record that the acquisition has written, and notifies its watchers.
    pub(super) fn clear_record_marker(
        &mut self,
        key: AdvisoryKey,
        acquisition: AcquisitionKey,
        batch: &mut StatementBatch,
    ) {
        let Some(marker) = self.record_markers.remove(&key) else {
            return;
        };
        if self.markers.remove(marker, acquisition) {
            let watched = key.record_key();
            let row = Row {
                op: Op::ClearRecordMarker,
                key: AdvisoryKey::Int64(marker),
                waiter_marker: 0,
                beside: watched.bits(),
            };
            batch.add(row, None, watched, RowPurpose::Release);
        }
    }

    fn clear_marker(
        &mut self,
        marker: i64,
        acquisition: AcquisitionKey,
        of: AdvisoryKey,
        batch: &mut StatementBatch,
    ) {
        if self.markers.remove(marker, acquisition) {
            batch.add_marker(Op::ClearMarker, marker, of, RowPurpose::ClearMarker);
        }
    }
}

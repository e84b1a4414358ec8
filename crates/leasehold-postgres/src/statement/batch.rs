//! [`Operations`]: the SQL that executes one row of a batch.

use crate::statement::{
    fragments::{
        INT32_PAIR, INT64, after_clearing_marker, after_clearing_markers, granted, no_writer_waits,
        notified, released, yielding,
    },
    operation::{DONE, NOTIFIED, Op, PAIRS, REFUSED},
};

/// The branches of `CASE operation`, by which a batch executes a row.
#[derive(Default)]
pub(super) struct Operations {
    others: String,
    readers: String,
    /// The codes of the operations of readers.
    reading: Vec<String>,
}

impl Operations {
    pub(super) fn new(token: &str, pairs: bool) -> Self {
        let mut operations = Self::default();
        operations.add_int64(token);
        if pairs {
            operations.add_locks(PAIRS, INT32_PAIR, "'p' || key", token);
        }
        operations
    }

    /// Returns the result of a row. Rows of readers have none.
    pub(super) fn without_readers(&self) -> String {
        format!("CASE operation{} END", self.others)
    }

    /// Returns the result of a row. A reader is refused while a writer waits. Only writers count
    /// for whose session the condition `counts` holds.
    pub(super) fn with_readers(&self, counts: &str) -> String {
        format!(
            "CASE WHEN operation IN ({reading}) THEN {reader} ELSE {other} END",
            reading = self.reading.join(", "),
            reader = granted(
                &no_writer_waits(counts, "$7"),
                &format!("CASE operation{} END", self.readers)
            ),
            other = self.without_readers()
        )
    }

    fn add(&mut self, from: i16, op: Op, result: &str) {
        let code = op as i16 + from;
        let branches = if op.reads() {
            self.reading.push(code.to_string());
            &mut self.readers
        } else {
            &mut self.others
        };
        branches.push_str(&format!(" WHEN {code} THEN {result}"));
    }

    /// Adds the branches for locks of one key space, whose lock functions have the arguments `key`.
    /// The branches of readers assume that no writer waits.
    fn add_locks(&mut self, from: i16, key: &str, payload: &str, token: &str) {
        let exclusive = format!("pg_try_advisory_lock({key})");
        let shared = format!("pg_try_advisory_lock_shared({key})");
        let released = |released: String| released_in_batch(&released, payload);
        for (op, result) in [
            (Op::Exclusive, granted(&exclusive, token)),
            (Op::Unlock, released(format!("pg_advisory_unlock({key})"))),
            (Op::ExclusiveYielding, granted(&yielding(&exclusive), token)),
            (
                Op::ExclusiveOfWaiter,
                granted(&exclusive, &after_clearing_markers(token)),
            ),
            (Op::Shared, granted(&shared, token)),
            (Op::SharedYielding, granted(&yielding(&shared), token)),
            (
                Op::SharedOfWaiter,
                granted(&shared, &after_clearing_marker(token)),
            ),
            (Op::Join, DONE.to_string()),
            (
                Op::UnlockShared,
                released(format!("pg_advisory_unlock_shared({key})")),
            ),
            (
                Op::ClearWriterMarker,
                released("pg_advisory_unlock_shared(beside)".into()),
            ),
        ] {
            self.add(from, op, &result);
        }
    }

    /// Adds the branches for locks with 64-bit keys, and for markers and permits, whose keys are
    /// all of 64 bits.
    fn add_int64(&mut self, token: &str) {
        let done = DONE.to_string();
        self.add_locks(0, INT64, "'b' || key", token);
        for (op, result) in [
            (
                Op::SetMarker,
                granted("pg_try_advisory_lock_shared(key)", &done),
            ),
            (
                Op::ClearMarker,
                granted("pg_advisory_unlock_shared(key)", &done),
            ),
            (
                Op::UnlockPermit,
                released_in_batch("pg_advisory_unlock(key)", "'b' || beside"),
            ),
            (
                Op::ClearRecordMarker,
                format!(
                    "CASE WHEN pg_advisory_unlock_shared(key) THEN CASE WHEN {} THEN {NOTIFIED} END \
                     ELSE {REFUSED} END",
                    notified("'b' || beside", "$6")
                ),
            ),
        ] {
            self.add(0, op, &result);
        }
    }
}

/// Returns the value that releases in a batch, whose parameter `$6` is the `synchronous_commit`.
fn released_in_batch(was_released: &str, payload: &str) -> String {
    released(was_released, payload, "$6")
}

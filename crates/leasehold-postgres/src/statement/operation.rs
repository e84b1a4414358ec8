//! [`Op`] and [`Row`]: the operations of a batch.

use crate::keys::AdvisoryKey;

/// The result of an operation that was refused, or that had nothing to do. Tokens are above it.
pub(crate) const REFUSED: i64 = 0;
/// The result of an operation that succeeded and draws no token.
pub(crate) const DONE: i64 = -1;
/// The result of a release that also notified waiters.
pub(crate) const NOTIFIED: i64 = -2;

/// The operation of a row, and its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Acquires exclusively. Returns a token, or [`REFUSED`].
    Exclusive,
    /// Releases. Returns [`DONE`], [`NOTIFIED`], or [`REFUSED`] if the lock was not held.
    Unlock,
    /// Acquires shared, unless a writer waits. Returns a token, or [`REFUSED`].
    Shared,
    /// Releases a shared lock. Returns as `Unlock`.
    UnlockShared,
    /// As `Exclusive`. When granted, clears the two markers of the waiting writer.
    ExclusiveOfWaiter,
    /// As `Shared`. When granted, clears the marker of the waiter.
    SharedOfWaiter,
    /// As `Exclusive`, unless another session waits.
    ExclusiveYielding,
    /// As `Shared`, unless another session waits.
    SharedYielding,
    /// Adds a reader to a shared lock of this session, unless a writer waits. Returns [`DONE`] or
    /// [`REFUSED`].
    Join,
    /// Sets a marker. Returns [`DONE`], or [`REFUSED`] if another session is checking for it.
    SetMarker,
    /// Clears a marker. Returns [`DONE`], or [`REFUSED`] if it was not set.
    ClearMarker,
    /// Clears the marker of a waiting writer, and notifies the readers that waited behind it.
    /// Returns as `Unlock`.
    ClearWriterMarker,
    /// Releases a permit, as `Unlock`, and notifies the waiters for its semaphore.
    UnlockPermit,
    /// Clears the marker of a record, and notifies the watchers of the record. Returns
    /// [`NOTIFIED`], or [`REFUSED`] if it was not set.
    ClearRecordMarker,
}

impl Op {
    /// Returns whether the operation acquires for a reader, which yields to waiting writers.
    pub(crate) fn reads(self) -> bool {
        matches!(
            self,
            Self::Shared | Self::SharedOfWaiter | Self::SharedYielding | Self::Join
        )
    }

    /// Returns whether the operation may draw a token.
    pub(crate) fn acquires(self) -> bool {
        use Op::{
            ClearMarker, ClearRecordMarker, ClearWriterMarker, Exclusive, ExclusiveOfWaiter,
            ExclusiveYielding, Join, SetMarker, Shared, SharedOfWaiter, SharedYielding, Unlock,
            UnlockPermit, UnlockShared,
        };
        match self {
            Exclusive | Shared | ExclusiveOfWaiter | SharedOfWaiter | ExclusiveYielding
            | SharedYielding => true,
            Unlock | UnlockShared | UnlockPermit | Join | SetMarker | ClearMarker
            | ClearWriterMarker | ClearRecordMarker => false,
        }
    }
}

/// One row: an operation, its key, and the keys beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) op: Op,
    pub(crate) key: AdvisoryKey,
    /// The marker of waiters.
    pub(crate) waiter_marker: i64,
    /// The marker of waiting writers, the key of the semaphore of a permit, or the key under which
    /// the watchers of a record are notified.
    pub(crate) beside: i64,
}

/// The offset of operations on pairs in the numbering of operations.
pub(super) const PAIRS: i16 = 100;

impl Row {
    /// Returns the number of the operation in SQL.
    pub(crate) fn code(&self) -> i16 {
        self.op as i16 + if self.key.is_pair() { PAIRS } else { 0 }
    }
}

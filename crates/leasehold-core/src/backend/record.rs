//! [`Record`]: a value beside a lock; and how backends read and write it.

use std::{fmt, sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;

use crate::{
    backend::acquisition_id::AcquisitionId,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    key::LockKey,
};

/// A value that the holder of an exclusive lock has left beside it.
///
/// A lock has at most one record. Anyone may read it, and only the exclusive holder writes it, in
/// one step with the check of the server that it still holds the lock. The record outlives the
/// release, the expiry and the revocation of the lock. [`Records`](crate::Records) says which
/// faults it survives.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::{LockKey, Record, backend::{LockBackend, RecordRead, RecordWrite, Request}};
///
/// let backend = Arc::new(MemoryBackend::new());
/// let key = LockKey::new("nightly-report")?;
/// let lease = backend.clone().acquire(Request::new(key.clone())).await?;
/// lease.clone().write_record(RecordWrite::new(1, "done")?).await?;
/// lease.release().await?;
///
/// let record: Record = backend.read_record(RecordRead::new(key)).await?.record.unwrap();
/// assert_eq!(record.value, b"done");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The value: at most [`MAX_LEN`](Self::MAX_LEN) arbitrary bytes.
    pub value: Vec<u8>,
    /// The number of writes to this record so far. It grows with every write, also with one that
    /// clears the record, and never starts again while the backend keeps its data.
    pub version: u64,
    /// The acquisition that wrote the record.
    pub owner: AcquisitionId,
    /// Which write of that acquisition this is, counted from 1.
    pub sequence: u64,
    /// The fencing token of that acquisition. `None` if the backend has no tokens.
    pub token: Option<FencingToken>,
    /// The label of the writer, for people: at most [`MAX_LABEL_LEN`](Self::MAX_LABEL_LEN) bytes.
    pub label: String,
    /// The time of the write, by the wall clock of the server if it has one, and otherwise by that
    /// of the writer.
    pub written: SystemTime,
}

impl Record {
    /// The maximum length of a value in bytes. Every backend stores as much in one request, and it
    /// does not delay the renewals that share the connection.
    pub const MAX_LEN: usize = 16 * 1024;
    /// The maximum length of a label in bytes. A longer label is truncated.
    pub const MAX_LABEL_LEN: usize = 256;

    /// Creates a record of the first write, with this value, by `owner`. Set the other fields as
    /// needed.
    #[must_use]
    pub fn new(owner: AcquisitionId, value: impl Into<Vec<u8>>) -> Self {
        Self {
            value: value.into(),
            version: 1,
            owner,
            sequence: 1,
            token: None,
            label: String::new(),
            written: SystemTime::UNIX_EPOCH,
        }
    }
}

/// A request to read the record of a lock.
///
/// ```
/// use leasehold_core::{LockKey, backend::RecordRead};
///
/// let mut read = RecordRead::new(LockKey::new("nightly-report")?);
/// read.watch = true;
/// assert!(!read.while_held && !read.clock);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordRead {
    /// The key of the lock.
    pub key: LockKey,
    /// Whether the record is wanted only while the grant that wrote it holds the lock. Otherwise
    /// the answer is `None`.
    pub while_held: bool,
    /// Whether to return [`RecordReading::changed`].
    pub watch: bool,
    /// Whether to return [`RecordReading::now`].
    pub clock: bool,
}

impl RecordRead {
    /// Creates a request for the record of `key`, whether or not its writer still holds the lock,
    /// without a watch and without the time.
    #[must_use]
    pub fn new(key: LockKey) -> Self {
        Self {
            key,
            while_held: false,
            watch: false,
            clock: false,
        }
    }
}

/// The answer to a [`RecordRead`].
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::backend::RecordReading;
/// use tokio::sync::Notify;
///
/// let written = Arc::new(Notify::new());
/// // Before the read is sent:
/// let notified = written.clone().notified_owned();
/// // The server answers that there is no record:
/// let mut reading = RecordReading::new(None);
/// reading.changed = Some(Box::pin(notified));
/// ```
#[non_exhaustive]
pub struct RecordReading {
    /// The record. `None` if there is none, if it was cleared, or if its writer no longer holds
    /// the lock and the read wanted it only [while held](RecordRead::while_held).
    pub record: Option<Record>,
    /// The time of the read by the wall clock of the server. `None` unless the read asked for it,
    /// and if the server has no clock.
    pub now: Option<SystemTime>,
    /// A future that completes when another read may have another answer: after a write, and for a
    /// read of a record [while held](RecordRead::while_held) also after the end of the hold.
    ///
    /// It was armed *before* the read was sent, so that no write in between is missed. It may
    /// complete without a change. It also completes when a change may have been missed, as after
    /// the loss of the connection. Dropping it disarms it. Without it, the client reads once a
    /// second.
    pub changed: Option<BoxFuture<'static, ()>>,
}

impl RecordReading {
    /// Creates an answer without the time and without a notification of changes.
    #[must_use]
    pub fn new(record: Option<Record>) -> Self {
        Self {
            record,
            now: None,
            changed: None,
        }
    }
}

impl fmt::Debug for RecordReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordReading")
            .field("record", &self.record)
            .field("now", &self.now)
            .field("changed", &self.changed.is_some())
            .finish()
    }
}

/// One write of the record beside a lock. Cloning is cheap, and a clone is the same write.
///
/// The owner of the lease and the sequence name a write. The client counts the writes of a lease
/// from 1, and repeats a write whose answer was lost with the same sequence.
///
/// ```
/// use leasehold_core::{ErrorKind, Record, backend::RecordWrite};
///
/// let write = RecordWrite::new(1, "done")?;
/// assert_eq!((write.sequence(), write.value()), (1, Some(b"done".as_slice())));
/// assert_eq!(RecordWrite::clear(2).value(), None);
/// let oversized = RecordWrite::new(3, vec![0; Record::MAX_LEN + 1]).unwrap_err();
/// assert_eq!(oversized.kind(), ErrorKind::InvalidInput);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordWrite {
    sequence: u64,
    value: Option<Arc<[u8]>>,
}

impl RecordWrite {
    /// Creates a write that replaces the value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the value is longer than [`Record::MAX_LEN`].
    pub fn new(sequence: u64, value: impl AsRef<[u8]>) -> Result<Self> {
        let value = value.as_ref();
        if value.len() > Record::MAX_LEN {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the value of the record has {} bytes and the limit is {}; store it elsewhere, and a reference to it in the record",
                    value.len(),
                    Record::MAX_LEN
                ),
            ));
        }
        Ok(Self {
            sequence,
            value: Some(value.into()),
        })
    }

    /// Creates a write that clears the record.
    #[must_use]
    pub fn clear(sequence: u64) -> Self {
        Self {
            sequence,
            value: None,
        }
    }

    /// Returns which write of its lease this is, counted from 1.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the new value. `None` clears the record.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }
}

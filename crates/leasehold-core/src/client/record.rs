//! Reading the records beside locks: [`LockClient::record`] and [`RecordWatch`].

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::time::{Instant, sleep_until};

use crate::{
    backend::{
        acquisition_id::AcquisitionId,
        lease::BoxFuture,
        record::{Record, RecordRead, RecordReading},
    },
    client::handle::LockClient,
    error::{Error, Result},
    key::LockKey,
    lease::grant::CompleteOnDrop,
    panics::{Call, contain, contained},
};

/// The time until a watch reads again if the backend does not notify it, or after a fault.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// # Records
impl LockClient {
    /// Returns the record beside the lock `key`, or `None` if there is none. The lock itself is not
    /// taken, and may be held, waited for, or free.
    ///
    /// The holder of an exclusive lock writes the record by
    /// [`LockGuard::write_record`](crate::LockGuard::write_record).
    ///
    /// # Guaranteed
    /// The answer is the last write that returned before this call began, or a later one. This
    /// holds on all connections, until the backend loses data; see
    /// [`Capabilities::records`](crate::Capabilities::records).
    ///
    /// # Not guaranteed
    /// The record may be written again before the caller sees the answer. Only the holder of the
    /// lock knows that nobody else writes it.
    ///
    /// ```
    /// # use leasehold_local::MemoryBackend;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
    /// # use leasehold_core::LockClient;
    /// # let client = LockClient::new(MemoryBackend::new());
    /// let guard = client.mutex("nightly-report").lock().await?;
    /// guard.write_record("done until 2026-03-01").await?;
    /// guard.release().await?;
    ///
    /// if let Some(record) = client.record("nightly-report").await? {
    ///     assert_eq!(record.value, b"done until 2026-03-01");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the backend keeps no records.
    ///   Nothing was sent. A client that connects [lazily](crate::backend::LazyBackend) connects
    ///   first.
    /// - [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if another program has written the
    ///   place of the record.
    /// - Otherwise the error of the backend.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn record<K>(&self, key: K) -> Result<Option<Record>>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let read = RecordRead::new(key.try_into()?);
        Ok(self.read_record(read).await?.record)
    }

    /// Returns a watch of the record beside the lock `key`. Nothing is sent before its first
    /// [`next`](RecordWatch::next), which reports an invalid key.
    pub fn watch<K>(&self, key: K) -> RecordWatch
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let read = key.try_into().map_err(Error::from).map(RecordRead::new);
        RecordWatch::new(self.clone(), read)
    }

    /// Reads a record, once the client and the backend are known to be able to.
    pub(crate) async fn read_record(&self, read: RecordRead) -> Result<RecordReading> {
        self.check_usable()?;
        let (context, capabilities) = (&self.0.context, self.capabilities());
        if !capabilities.provisional {
            capabilities.check_records()?;
        }
        let reading = Call::of(|| Arc::clone(&context.backend).read_record(read));
        CompleteOnDrop::short(context, reading)
            .await
            .map_err(|error| match error.operation() {
                Some(_) => error,
                None => error.with_operation("read_record"),
            })
    }
}

/// A watch of the record beside one lock. [`LockClient::watch`] creates it.
///
/// The backend notifies the watch of writes. If a backend cannot, the watch reads once a second.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let mut watch = client.watch("config/shop");
/// assert_eq!(watch.next().await?, None);
///
/// client.mutex("config/shop").try_run(async |lease| lease.write_record("v2").await).await?;
/// let record = watch.next().await?.expect("it has been written");
/// assert_eq!(record.value, b"v2");
/// # Ok(()) }
/// ```
pub struct RecordWatch {
    client: LockClient,
    /// An invalid key is reported by the first read, so that `client.watch(key)` returns a plain
    /// value.
    read: Result<RecordRead>,
    /// The state that was returned last. `None` before the first.
    reported: Option<State>,
    /// Whether the last read failed, so that an outage is logged once.
    is_failing: bool,
    next_read: NextRead,
}

/// The identity of one state of a record: the write that led to it.
type State = Option<(AcquisitionId, u64, u64)>;

/// When a watch reads again.
enum NextRead {
    Now,
    Changed(BoxFuture<'static, ()>),
    /// At a point in time. A pause would begin again with each call, and a watch whose calls are
    /// dropped sooner would never read.
    At(Instant),
}

impl NextRead {
    fn in_a_while() -> Self {
        Self::At(Instant::now() + POLL_INTERVAL)
    }
}

impl RecordWatch {
    /// Creates a watch of what `read` asks for. Its first read reports an error.
    pub(crate) fn new(client: LockClient, read: Result<RecordRead>) -> Self {
        Self {
            client,
            read: read.map(|mut read| {
                read.watch = true;
                read
            }),
            reported: None,
            is_failing: false,
            next_read: NextRead::Now,
        }
    }

    /// Waits until the record differs from what the watch returned last, and returns it. The first
    /// call returns the present record at once. `None` means that there is no record.
    ///
    /// # Guaranteed
    /// The last state is never missed: if no more writes follow, a call returns the last one.
    /// Earlier states may be skipped. No two calls in a row return the same write.
    ///
    /// # Faults
    /// While the backend cannot be reached, the call waits, and reads again once a second. When
    /// this begins, it logs a warning.
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the backend keeps no records.
    /// - [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if another program has written the
    ///   place of the record.
    /// - [`ErrorKind::Closed`](crate::ErrorKind::Closed) if the client was closed, also while the
    ///   call waits.
    /// - Otherwise any error of the backend that the same read would meet again. A further call
    ///   reads again.
    ///
    /// # Cancel safety
    /// Safe: a dropped call loses no state. The next call returns it.
    pub async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            self.until_next_read().await?;
            let read = self.read.clone()?;
            let key = read.key.clone();
            match self.client.read_record(read).await {
                Ok(reading) => {
                    self.is_failing = false;
                    let record = reading.record;
                    self.next_read = match reading.changed {
                        Some(changed) => NextRead::Changed(changed),
                        None => NextRead::in_a_while(),
                    };
                    let state = record
                        .as_ref()
                        .map(|record| (record.owner, record.sequence, record.version));
                    if self.reported != Some(state) {
                        self.reported = Some(state);
                        return Ok(record);
                    }
                }
                Err(error) if error.is_retryable() => {
                    self.next_read = NextRead::in_a_while();
                    if !std::mem::replace(&mut self.is_failing, true) {
                        contain(|| {
                            tracing::warn!(
                                target: "leasehold",
                                backend = self.client.capabilities().backend,
                                %key,
                                %error,
                                "cannot read the record of a watch, which may be out of date; it is read again once a second"
                            );
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the next call of [`next`](Self::next) return the present record at once.
    pub(crate) fn start_again(&mut self) {
        self.reported = None;
        self.next_read = NextRead::Now;
    }

    /// Returns the same states as a stream. It ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Option<Record>>> + Send + Unpin {
        stream::unfold(Some(self), |watch| async {
            let mut watch = watch?;
            let next = watch.next().await;
            let rest = next.is_ok().then_some(watch);
            Some((next, rest))
        })
        .boxed()
    }

    /// Waits until it is time to read. After it was dropped, it continues to wait.
    async fn until_next_read(&mut self) -> Result<()> {
        let closing = Arc::clone(&self.client.0.context.requests);
        let waiting = async {
            match &mut self.next_read {
                NextRead::Now => {}
                NextRead::Changed(changed) => {
                    let notified = contained(changed.map(Ok)).await;
                    if notified.is_err() {
                        // A future that panicked must not be polled again.
                        let next = Instant::now() + POLL_INTERVAL;
                        self.next_read = NextRead::At(next);
                        sleep_until(next).await;
                    }
                }
                NextRead::At(next) => sleep_until(*next).await,
            }
        };
        tokio::select! {
            biased;
            () = closing.closing.cancelled() => {}
            () = waiting => {}
        }
        // If the read is dropped, the next call reads at once.
        self.next_read = NextRead::Now;
        self.client.check_usable()
    }
}

impl fmt::Debug for RecordWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordWatch")
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

//! [`Election`]: one of several processes leads.

use std::{fmt, ops::ControlFlow, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    backend::{acquisition_id::random_bytes, capability::Records, record::RecordWrite},
    client::{
        acquire::{Wait, acquire_with},
        engine::Spec,
        handle::LockClient,
    },
    election::{
        leader::{self, Leader, Leaders},
        term::{Term, TermInfo},
    },
    error::{Error, Result},
    key::LockKey,
    lease::release::OwnedLease,
    lock::options::lock_options,
    mode::Mode,
    panics::contain,
    telemetry,
};

/// The time until a write of the leader's value is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The longest time for which the write of the leader's value is repeated, however long the TTL is.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
/// The least time from a loss or a fault to the next campaign of [`Election::lead`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// An election: one of several candidates leads, and anyone can see who. Created by
/// [`LockClient::election`](crate::LockClient::election).
///
/// The leader holds the exclusive lock of the name, and proclaims a value, such as its address.
/// Use a [`Mutex`](crate::Mutex) if nobody needs to see who holds the lock.
///
/// Which method?
/// - [`lead`](Self::lead): a task that campaigns and works for as long as the program lives.
/// - [`campaign`](Self::campaign), [`try_campaign`](Self::try_campaign) and
///   [`campaign_timeout`](Self::campaign_timeout): one term, as a guard.
/// - [`leader`](Self::leader) and [`observe`](Self::observe): those who only want to know. They
///   need not be candidates.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let election = client.election("scheduler");
/// let term = election.campaign("10.0.0.7:8080").await?;
///
/// // Others see who leads, and cannot lead themselves.
/// let leader = election.leader().await?.expect("one was elected");
/// assert_eq!(leader.value, b"10.0.0.7:8080");
/// assert!(election.try_campaign("10.0.0.8:8080").await?.is_none());
///
/// term.resign().await?;
/// assert!(election.leader().await?.is_none());
/// # Ok(()) }
/// ```
///
/// # Guaranteed
/// - At most one candidate leads at a time, as far as the lock
///   [excludes](crate::LockGuard#guaranteed). An election and a mutex of the same name exclude each
///   other.
/// - A value is shown only until the backend frees the lock of the leader that proclaimed it, which
///   is at the end of its term, or soon after a term that was lost. The value of a candidate that
///   waits is never shown.
/// - When a campaign returns, the value of the new leader is shown. From the grant until then,
///   there may be no leader to be seen, but never a former one.
///
/// # Not guaranteed
/// - A leader that was paused may act as the leader until it reads the clock. Only the resource
///   can refuse its writes, by comparing [fencing tokens](crate::FencingToken).
/// - A candidate that gives up at the moment of its grant may be shown as the leader, until the
///   backend has removed it.
/// - The record of the name belongs to the election. The holder of a mutex of this name that
///   [writes a record](crate::LockGuard::write_record) is shown as the leader.
///
/// # Backends without records
/// An election with an empty value elects on every backend. Anything that shows or reads a value
/// fails there with [`Unsupported`](crate::ErrorKind::Unsupported);
/// [`Capabilities::records`](crate::Capabilities::records) says where.
#[derive(Clone)]
pub struct Election {
    pub(super) client: LockClient,
    spec: Spec,
    standby: Option<Duration>,
}

impl LockClient {
    /// Creates a handle for the election named `key`.
    ///
    /// Nothing is sent until it is used. An invalid key is reported then.
    pub fn election<K>(&self, key: K) -> Election
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        Election {
            client: self.clone(),
            spec: self.spec(key, Mode::Exclusive),
            standby: None,
        }
    }
}

impl Election {
    lock_options!();

    /// Makes this a candidate on standby, which campaigns only once there has been no leader for
    /// `delay`, and stops campaigning when another candidate leads.
    ///
    /// Candidates without a delay are thereby preferred: give them at least the time that they need
    /// to notice a vacancy. A leader is never replaced, whether or not it was on standby. A single
    /// attempt is made at once.
    #[must_use]
    pub fn with_standby(mut self, delay: Duration) -> Self {
        self.standby = Some(delay);
        self
    }

    /// Waits until this candidate leads. The value is shown from then on, until the end of the
    /// term or the next [`proclaim`](TermInfo::proclaim).
    ///
    /// Candidates of the same client are served first come, first served, and those of other
    /// clients as [`Capabilities::fairness`](crate::Capabilities::fairness) says.
    ///
    /// # Errors
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid key or TTL, and for a
    ///   value longer than [`Record::MAX_LEN`](crate::Record::MAX_LEN). Nothing was sent.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) if the backend keeps no records, and the
    ///   value is not empty or this candidate is on standby. Nothing was sent. A client that
    ///   connects [lazily](crate::backend::LazyBackend) connects first.
    /// - The error of the write of the value, after which the term has ended. A transient error is
    ///   retried for one TTL, but at most 30 s.
    /// - Otherwise as [`Mutex::lock`](crate::Mutex::lock).
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped, the candidate leaves the queue, and a term that had begun
    /// ends in the background.
    pub async fn campaign(&self, value: impl AsRef<[u8]>) -> Result<Term> {
        match self.elected(value.as_ref(), Wait::Forever).await? {
            Some(term) => Ok(term),
            None => unreachable!("a campaign without a limit ends with a term or an error"),
        }
    }

    /// Makes one attempt to lead. Returns `None` if another candidate leads, or if an earlier one
    /// is served first.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign). A transient error is not retried.
    ///
    /// # Cancel safety
    /// As [`campaign`](Self::campaign).
    pub async fn try_campaign(&self, value: impl AsRef<[u8]>) -> Result<Option<Term>> {
        self.elected(value.as_ref(), Wait::Not).await
    }

    /// Waits for at most `timeout` to lead. Returns `None` if another candidate led until then, or
    /// if this one was on [standby](Self::with_standby).
    ///
    /// A timeout of zero makes one attempt. The value of a term that is granted within the timeout
    /// may be written after it.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign). Also [`Unavailable`](crate::ErrorKind::Unavailable) if the
    /// timeout elapses and the backend has not answered that another candidate leads.
    ///
    /// # Cancel safety
    /// As [`campaign`](Self::campaign).
    pub async fn campaign_timeout(
        &self,
        value: impl AsRef<[u8]>,
        timeout: Duration,
    ) -> Result<Option<Term>> {
        self.elected(value.as_ref(), Wait::AtMost(timeout)).await
    }

    /// Campaigns with `value`, runs `work` as the leader, and resigns. Repeats this until the work
    /// returns `ControlFlow::Break`, whose value it returns.
    ///
    /// The work is cancelled before another candidate can lead, as
    /// [`LockGuard::run`](crate::LockGuard::run) does. After a loss of the leadership, and after a
    /// fault of the backend, the next campaign begins after a random pause of 100 ms to a third of
    /// the TTL. After `ControlFlow::Continue` it begins at once. If a generic `work` must be
    /// spawned, use [`lead_with`](Self::lead_with).
    ///
    /// ```
    /// # use leasehold_local::MemoryBackend;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
    /// # use leasehold_core::LockClient;
    /// # let client = LockClient::new(MemoryBackend::new());
    /// # async fn next_job() -> Option<u32> { None }
    /// use std::ops::ControlFlow;
    ///
    /// let mut jobs = 0;
    /// let work = async |_term| match next_job().await {
    ///     Some(job) => ControlFlow::Continue(jobs += job), // others may lead
    ///     None => ControlFlow::Break("no more jobs"),
    /// };
    /// assert_eq!(client.election("scheduler").lead("10.0.0.7", work).await?, "no more jobs");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Any error that no retry can mend, such as [`InvalidInput`](crate::ErrorKind::InvalidInput),
    /// [`Unsupported`](crate::ErrorKind::Unsupported) and [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    /// Safe for the election: the work is dropped, and the term ends in the background.
    pub async fn lead<T>(
        &self,
        value: impl AsRef<[u8]>,
        mut work: impl AsyncFnMut(TermInfo) -> ControlFlow<T>,
    ) -> Result<T> {
        loop {
            let led = match self.campaign(&value).await {
                Ok(term) => term.run_with(|term| work(term)).await,
                Err(error) => Err(error),
            };
            if let ControlFlow::Break(value) = self.after_term(led).await? {
                return Ok(value);
            }
        }
    }

    /// Runs `work` as [`lead`](Self::lead) does. The type of its future can be named, so that a
    /// generic `work` may be `Send`.
    ///
    /// # Errors
    /// As [`lead`](Self::lead).
    ///
    /// # Cancel safety
    /// As [`lead`](Self::lead).
    pub async fn lead_with<F, Fut, T>(&self, value: impl AsRef<[u8]>, mut work: F) -> Result<T>
    where
        F: FnMut(TermInfo) -> Fut,
        Fut: Future<Output = ControlFlow<T>>,
    {
        loop {
            let led = match self.campaign(&value).await {
                Ok(term) => term.run_with(&mut work).await,
                Err(error) => Err(error),
            };
            if let ControlFlow::Break(value) = self.after_term(led).await? {
                return Ok(value);
            }
        }
    }

    /// Returns the present leader and its value, or `None` if there is no leader.
    ///
    /// # Guaranteed
    /// The candidate had the lock, and had proclaimed the value last, at some moment during the
    /// call.
    ///
    /// # Not guaranteed
    /// Another candidate may lead before the caller sees the answer.
    ///
    /// # Errors
    /// As [`LockClient::record`](crate::LockClient::record).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let read = leader::read(self.spec.key.clone()?);
        Ok(self
            .client
            .read_record(read)
            .await?
            .record
            .map(Leader::from))
    }

    /// Returns an observer of the leaders and their values. Nothing is sent before its first
    /// [`next`](Leaders::next), which reports an invalid key.
    #[must_use]
    pub fn observe(&self) -> Leaders {
        Leaders::new(self.client.clone(), self.spec.key.clone())
    }

    /// Campaigns as `wait` says.
    async fn elected(&self, value: &[u8], wait: Wait) -> Result<Option<Term>> {
        // A value that is too long is refused as that of a record.
        RecordWrite::new(1, value)?;
        self.check_publishes(value)?;
        let spec = Spec {
            proposal: Some(Arc::from(value)),
            ..self.spec.clone()
        };
        let begun = Instant::now();
        let lease = match (self.standby, wait) {
            (None, _) | (_, Wait::Not | Wait::AtMost(Duration::ZERO)) => {
                acquire_with(&self.client.0, &spec, wait).await?
            }
            // Boxed, so that the future of a usual campaign is not larger.
            (Some(delay), _) => Box::pin(self.stand_by(&spec, delay, wait)).await?,
        };
        match lease {
            Some(lease) => {
                let wait = wait.less(begun.elapsed());
                self.begin_term(lease, value, wait).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Checks that the backend can show a value that is not empty. Before a lazy backend is
    /// connected, this is not known.
    fn check_publishes(&self, value: &[u8]) -> Result<()> {
        let capabilities = self.client.capabilities();
        if capabilities.provisional || value.is_empty() {
            return Ok(());
        }
        capabilities.check_records().map_err(|error| {
            Error::new(
                error.kind(),
                format!(
                    "no value of a leader can be shown: {}; or campaign with an empty value",
                    error.message()
                ),
            )
            .with_backend(capabilities.backend)
        })
    }

    /// Begins the term of a candidate that has the lock, once its value is shown.
    async fn begin_term(&self, lease: OwnedLease, value: &[u8], wait: Wait) -> Result<Term> {
        let capabilities = self.client.capabilities();
        let published = if capabilities.proposals {
            Ok(())
        } else if capabilities.records > Records::None {
            publish(&lease, value, wait).await
        } else {
            self.check_publishes(value)
        };
        if let Err(error) = published {
            drop(lease.release().await);
            return Err(error);
        }
        telemetry::term_began(&self.client.0.context);
        Ok(Term::new(lease))
    }

    /// Returns what the work said, or `Continue` after a pause if the term was lost or did not
    /// begin.
    ///
    /// # Errors
    /// The error, if no retry can mend it.
    async fn after_term<T>(&self, led: Result<ControlFlow<T>>) -> Result<ControlFlow<T>> {
        match led {
            Err(error) if error.may_pass() => {
                let (key, ttl) = (self.spec.key.clone()?, self.client.0.check(&self.spec)?);
                contain(|| {
                    tracing::warn!(
                        target: "leasehold",
                        backend = self.client.capabilities().backend,
                        %key,
                        %error,
                        "not the leader; the next campaign follows"
                    );
                });
                sleep(pause(ttl.as_duration() / 3)).await;
                Ok(ControlFlow::Continue(()))
            }
            led => led,
        }
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election")
            .field("key", &self.spec.key)
            .field("standby", &self.standby)
            .finish_non_exhaustive()
    }
}

/// Writes the value into the record. A transient error is retried for one TTL, at most 30 s, or for
/// as long as `wait` says.
async fn publish(lease: &OwnedLease, value: &[u8], wait: Wait) -> Result<()> {
    let held = lease.held();
    let ttl = held.request.ttl().as_duration();
    let longest = ttl.min(LONGEST_PATIENCE);
    let patience = match wait {
        Wait::Not => Duration::ZERO,
        Wait::AtMost(left) => left.min(longest),
        Wait::Forever => longest,
    };
    let begun = Instant::now();
    loop {
        match held.write_record(Some(value)).await {
            Err(error)
                if error.is_retryable()
                    && held.is_held()
                    && begun.elapsed() + RETRY_PAUSE < patience =>
            {
                sleep(RETRY_PAUSE).await;
            }
            written => return written.map(|_| ()),
        }
    }
}

/// Returns a random pause from the shortest one to `longest`, so that candidates which lost the
/// leadership at the same time do not campaign at the same time.
fn pause(longest: Duration) -> Duration {
    let range = longest.saturating_sub(SHORTEST_PAUSE);
    let share = f64::from(u32::from_ne_bytes(random_bytes())) / f64::from(u32::MAX);
    SHORTEST_PAUSE + range.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_within_their_bounds_and_differ() {
        let longest = Duration::from_secs(10);
        let pauses: Vec<_> = (0..100).map(|_| pause(longest)).collect();
        assert!(
            pauses
                .iter()
                .all(|pause| (SHORTEST_PAUSE..=longest).contains(pause))
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        assert_eq!(pause(Duration::ZERO), SHORTEST_PAUSE);
    }
}

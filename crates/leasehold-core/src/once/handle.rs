//! [`Once`]: work that runs once per occurrence.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use crate::{
    client::{engine::Spec, handle::LockClient},
    error::{Error, Result},
    key::LockKey,
    lock::options::lock_options,
    mode::Mode,
    once::{
        history::History,
        occurrence::{Occurrence, OccurrenceId},
        policies::{Missed, Overlap, Policies, Retry},
        schedule::Schedule,
        turn::{Run, Turn},
    },
};

/// Work that runs once per occurrence, on whichever replica comes first. Created by
/// [`LockClient::once`](crate::LockClient::once).
///
/// All replicas create a `Once` of the same name with the same schedule and the same policies. An
/// occurrence is identified by the instant for which it is scheduled, and the
/// [record](crate::Record) beside the lock of the name keeps what has been decided. Replicas whose
/// clocks differ, or that ask late, therefore do not run it again.
///
/// Which method?
/// - [`serve`](Self::serve): a task that runs the schedule for as long as the program lives.
/// - [`run_due`](Self::run_due): the program looks at times of its own, as a cron job does.
/// - [`run`](Self::run): a scheduler of the program gives the occurrence.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use std::time::Duration;
/// use leasehold_core::once::{Every, Turn};
///
/// let hourly = client.once("report").with_schedule(Every::new(Duration::from_secs(3600))?);
/// # let hourly = client.once("report").with_at_least(Duration::from_secs(3600));
/// let turn = hourly.run_due(async |_| Ok::<_, std::io::Error>("sent")).await?;
/// assert!(matches!(turn, Turn::Ran("sent")));
///
/// // Another replica that looks now finds nothing to do.
/// let turn = hourly.run_due(async |_| Ok::<_, std::io::Error>("sent")).await?;
/// assert!(!matches!(turn, Turn::Ran(_)));
/// # Ok(()) }
/// ```
///
/// # Guaranteed
/// - An occurrence begins at most `1 + crashes + failures` times, as [`Retry`] says. It never runs
///   twice at a time, as far as the lock [excludes](crate::LockGuard#guaranteed). The work begins
///   only after the server has confirmed the record of its beginning. If the backend
///   [loses its data](crate::Records), forgotten occurrences may run again.
/// - A decided occurrence never begins again. Nothing that is decided becomes undecided.
/// - An occurrence completes unless its attempts are used up, a policy skips it, or no replica
///   asks.
///
/// # Not guaranteed
/// - The work of a runner that crashed may have had any of its effects. It should be idempotent, or
///   its resource should check [fencing tokens](crate::FencingToken).
/// - What is due is judged by the clock of the server. etcd has none, so that the clock of each
///   replica counts there: an occurrence may begin early by the error of the fastest clock, and a
///   clock that is set to the future decides occurrences of the future. It never runs twice.
/// - A schedule that is changed does not change what has been decided.
#[derive(Clone)]
pub struct Once {
    pub(super) client: LockClient,
    pub(super) spec: Spec,
    pub(super) schedule: Option<Arc<dyn Schedule>>,
    pub(super) policies: Policies,
    /// How long to wait while another holder has the lock; for ever without it.
    pub(super) wait: Option<Duration>,
}

impl LockClient {
    /// Creates a handle for work that runs once per occurrence, under the lock and the record named
    /// `key`.
    ///
    /// The record belongs to it: use another name for locks with records of their own. Nothing is
    /// sent until it is run. An invalid key is reported then.
    pub fn once<K>(&self, key: K) -> Once
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        Once {
            client: self.clone(),
            spec: self.spec(key, Mode::Exclusive),
            schedule: None,
            policies: Policies::default(),
            wait: None,
        }
    }
}

impl Once {
    lock_options!();

    /// Sets the schedule, which must be the same in all replicas. Without one, the present instant
    /// is always due.
    #[must_use]
    pub fn with_schedule(mut self, schedule: impl Schedule) -> Self {
        self.schedule = Some(Arc::new(schedule));
        self
    }

    /// Sets what happens to occurrences that nobody ran in time. Defaults to [`Missed::Latest`].
    #[must_use]
    pub fn with_missed(mut self, missed: Missed) -> Self {
        self.policies.missed = missed;
        self
    }

    /// Sets for how long an occurrence that fell due has not been missed. It counts for
    /// [`Missed::Skip`], and for the first occurrence of a name that was never used. Defaults to
    /// 60 s.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.policies.grace = grace;
        self
    }

    /// Sets what happens to occurrences that fall due during a run. Defaults to [`Overlap::Skip`].
    #[must_use]
    pub fn with_overlap(mut self, overlap: Overlap) -> Self {
        self.policies.overlap = overlap;
        self
    }

    /// Sets how often an occurrence is begun again.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.policies.retry = retry;
        self
    }

    /// Sets the longest time for one run. The work is then dropped at its next `.await`, which
    /// counts as a failure. Without it, a run may take any time.
    #[must_use]
    pub fn with_at_most(mut self, limit: Duration) -> Self {
        self.policies.at_most = Some(limit);
        self
    }

    /// Sets the least time from the begin of a run to the first attempt of the next occurrence.
    /// Defaults to zero.
    #[must_use]
    pub fn with_at_least(mut self, gap: Duration) -> Self {
        self.policies.at_least = gap;
        self
    }

    /// Sets how near an occurrence must be so that [`run_due`](Self::run_due) waits for it, and
    /// [`run`](Self::run) begins it early. Defaults to 10 s.
    #[must_use]
    pub fn with_early(mut self, early: Duration) -> Self {
        self.policies.early = early;
        self
    }

    /// Sets how many runs the history keeps, from 1 to 100 and as many as fit into 16 KiB. Named
    /// occurrences count as decided only while the history has them. Defaults to 16.
    #[must_use]
    pub fn with_history(mut self, runs: usize) -> Self {
        self.policies.history = runs;
        self
    }

    /// Sets for how long to wait while another holder has the lock. The wait also ends when the
    /// occurrence is decided. A duration of zero makes one attempt. Without it, this replica stands
    /// by, so that it takes over from a runner that crashes.
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Runs `work` if an occurrence is due and no other replica has run it.
    ///
    /// If another replica runs it, this one waits for the end, and takes over if that replica
    /// crashes. If an occurrence is [near](Self::with_early), this one waits for it. Without a
    /// schedule, the present instant is due, but [not too soon](Self::with_at_least) after the last
    /// run.
    ///
    /// The work is cancelled before the lock can be granted to another holder, as
    /// [`LockGuard::run`](crate::LockGuard::run) does. If a generic `work` must be spawned, use
    /// [`run_due_with`](Self::run_due_with).
    ///
    /// # Errors
    /// - [`Lost`](crate::ErrorKind::Lost) if the lock was lost before the work was complete. The
    ///   attempt counts as a crash.
    /// - [`Indeterminate`](crate::ErrorKind::Indeterminate) if no answer came. If the work ran, it
    ///   is complete, but its end is not recorded, so that it may run again.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) if the backend keeps no records, before
    ///   anything is sent, or if a newer version wrote the record.
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid key, TTL or policy. No
    ///   work was begun.
    /// - [`Conflict`](crate::ErrorKind::Conflict) if the record of the name is something else.
    /// - Otherwise the error of the backend. The work did not run.
    ///
    /// # Cancel safety
    /// Safe for the lock: the work is dropped and the lock released in the background. An attempt
    /// that had begun counts as a crash.
    pub async fn run_due<T, E: fmt::Display>(
        &self,
        work: impl AsyncFnOnce(Run) -> Result<T, E>,
    ) -> Result<Turn<T, E>> {
        Ok(self.turn(None, |run| work(run)).await?.turn)
    }

    /// Runs `work` as [`run_due`](Self::run_due) does. The type of its future can be named, so that
    /// a generic `work` may be `Send`.
    ///
    /// # Errors
    /// As [`run_due`](Self::run_due).
    ///
    /// # Cancel safety
    /// As [`run_due`](Self::run_due).
    pub async fn run_due_with<F, Fut, T, E>(&self, work: F) -> Result<Turn<T, E>>
    where
        F: FnOnce(Run) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: fmt::Display,
    {
        Ok(self.turn(None, work).await?.turn)
    }

    /// Runs `work` for this occurrence, unless it is decided.
    ///
    /// An instant must be the one for which the scheduler planned the run, not the present time. It
    /// may be late by any time, and [early](Self::with_early) by a little. Earlier instants are
    /// decided too. A name runs once while the [history](Self::with_history) has it. A key is for
    /// instants or for names, not for both.
    ///
    /// # Errors
    /// As [`run_due`](Self::run_due).
    ///
    /// # Cancel safety
    /// As [`run_due`](Self::run_due).
    pub async fn run<T, E: fmt::Display>(
        &self,
        occurrence: impl Into<Occurrence>,
        work: impl AsyncFnOnce(Run) -> Result<T, E>,
    ) -> Result<Turn<T, E>> {
        let occurrence = OccurrenceId::try_from(occurrence.into())?;
        Ok(self.turn(Some(&occurrence), |run| work(run)).await?.turn)
    }

    /// Runs `work` as [`run`](Self::run) does. The type of its future can be named, so that a
    /// generic `work` may be `Send`.
    ///
    /// # Errors
    /// As [`run_due`](Self::run_due).
    ///
    /// # Cancel safety
    /// As [`run_due`](Self::run_due).
    pub async fn run_with<F, Fut, T, E>(
        &self,
        occurrence: impl Into<Occurrence>,
        work: F,
    ) -> Result<Turn<T, E>>
    where
        F: FnOnce(Run) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: fmt::Display,
    {
        let occurrence = OccurrenceId::try_from(occurrence.into())?;
        Ok(self.turn(Some(&occurrence), work).await?.turn)
    }

    /// Runs `work` for every occurrence that falls due, for as long as the future is polled. Call
    /// it in every replica.
    ///
    /// Faults of the backend and lost locks are logged and retried. The history has the outcomes of
    /// the runs, and failures are repeated as [`Retry`] says.
    ///
    /// ```no_run
    /// # use leasehold_local::MemoryBackend;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
    /// # use leasehold_core::LockClient;
    /// # let client = LockClient::new(MemoryBackend::new());
    /// # async fn send_report() -> std::io::Result<()> { Ok(()) }
    /// use std::time::Duration;
    /// use leasehold_core::once::Every;
    ///
    /// let hourly = client.once("report").with_schedule(Every::new(Duration::from_secs(3600))?);
    /// hourly.serve(async |_| send_report().await).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Any error that no retry can mend, such as [`Closed`](crate::ErrorKind::Closed),
    /// [`Unsupported`](crate::ErrorKind::Unsupported) and
    /// [`Conflict`](crate::ErrorKind::Conflict). Also
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is neither a schedule nor
    /// [a least gap](Self::with_at_least).
    ///
    /// # Cancel safety
    /// As [`run_due`](Self::run_due).
    pub async fn serve<E: fmt::Display>(
        &self,
        mut work: impl AsyncFnMut(Run) -> Result<(), E>,
    ) -> Result<Infallible> {
        self.check_pauses()?;
        loop {
            let turned = self.turn(None, |run| work(run)).await;
            self.until_next_turn(turned).await?;
        }
    }

    /// Runs `work` as [`serve`](Self::serve) does. The type of its future can be named, so that a
    /// generic `work` may be `Send`.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    ///
    /// # Cancel safety
    /// As [`run_due`](Self::run_due).
    pub async fn serve_with<F, Fut, E>(&self, mut work: F) -> Result<Infallible>
    where
        F: FnMut(Run) -> Fut,
        Fut: Future<Output = Result<(), E>>,
        E: fmt::Display,
    {
        self.check_pauses()?;
        loop {
            let turned = self.turn(None, &mut work).await;
            self.until_next_turn(turned).await?;
        }
    }

    /// Returns what has been decided, and the latest runs. It is empty if nothing is known.
    ///
    /// # Errors
    /// As [`LockClient::record`](crate::LockClient::record), and
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if a newer version wrote the record.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn history(&self) -> Result<History> {
        Ok(self.read().await?.state.unwrap_or_default().into())
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once")
            .field("key", &self.spec.key)
            .field("schedule", &self.schedule)
            .field("policies", &self.policies)
            .finish_non_exhaustive()
    }
}

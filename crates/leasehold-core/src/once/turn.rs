//! [`Turn`], the outcome for a replica, and [`Run`], the view that the work has of its run.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use crate::{
    lock::guard::LeaseInfo,
    once::{
        decide::Rest,
        history::RunInfo,
        occurrence::Occurrence,
        state::{Entry, clipped},
        unix_millis::UnixMillis,
    },
};

/// The outcome for this replica, as [`Once::run_due`](crate::once::Once::run_due) and
/// [`Once::run`](crate::once::Once::run) return it.
///
/// ```
/// use leasehold_core::once::Turn;
///
/// fn report(turn: &Turn<u32, std::io::Error>) -> String {
///     match turn {
///         Turn::Ran(mails) => format!("sent {mails} mails"),
///         Turn::Failed(error) => format!("failed: {error}"),
///         Turn::Overtime => "took too long".into(),
///         // Another replica has run it, runs it, or will run it.
///         _ => "nothing to do here".into(),
///     }
/// }
/// assert_eq!(report(&Turn::Ran(3)), "sent 3 mails");
/// ```
#[derive(Debug)]
#[must_use = "the work may have failed, or may not have run here"]
#[non_exhaustive]
pub enum Turn<T, E> {
    /// The work was completed here, and its end is recorded.
    Ran(T),
    /// The work ran here and failed, which is recorded.
    Failed(E),
    /// The work ran here and was cancelled, because it took too long. This is recorded.
    Overtime,
    /// The occurrence is decided: it ran, or it will never run. The entry is missing if the history
    /// no longer has it.
    Decided(Option<RunInfo>),
    /// The occurrence may begin after this time.
    NotYet(Duration),
    /// Nothing is due until this instant, or ever.
    NotDue(Option<SystemTime>),
    /// Another holder had the lock for as long as this replica was to wait.
    Busy,
}

impl<T, E> From<Rest> for Turn<T, E> {
    fn from(rest: Rest) -> Self {
        match rest {
            Rest::Decided(entry) => Self::Decided(entry.as_ref().map(RunInfo::from)),
            Rest::NotYet(wait) => Self::NotYet(wait),
            Rest::NotDue(next) => Self::NotDue(next.map(UnixMillis::time)),
        }
    }
}

/// One run, for the work that it runs. Cloning is cheap.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::once::{Run, Turn};
///
/// let once = client.once("invoices");
/// let turn = once
///     .run("2031-04", async |run: Run| {
///         assert_eq!(run.attempt(), 1);
///         run.note("12 invoices");
///         // Pass the token to the resource, which can then refuse an earlier runner.
///         Ok::<_, std::io::Error>(run.lease().fencing_token())
///     })
///     .await?;
/// assert!(matches!(turn, Turn::Ran(Some(_))));
/// assert_eq!(once.history().await?.runs[0].note.as_deref(), Some("12 invoices"));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Run {
    occurrence: Occurrence,
    attempt: u32,
    lease: LeaseInfo,
    note: Arc<Mutex<Option<String>>>,
}

impl Run {
    pub(super) fn new(entry: &Entry, lease: LeaseInfo) -> Self {
        Self {
            occurrence: Occurrence::from(&entry.id),
            attempt: entry.attempt(),
            lease,
            note: Arc::default(),
        }
    }

    /// Returns what is run.
    #[must_use]
    pub fn occurrence(&self) -> &Occurrence {
        &self.occurrence
    }

    /// Returns the number of this attempt, from 1. Earlier attempts may have had some of their
    /// effects.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the lease under which the work runs.
    #[must_use]
    pub fn lease(&self) -> &LeaseInfo {
        &self.lease
    }

    /// Sets the note that the history keeps with the end of the run. It is cut to 100 bytes.
    /// Without it, a failure is noted with the text of its error.
    pub fn note(&self, text: impl AsRef<str>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = clipped(text.as_ref());
    }

    pub(super) fn noted(&self) -> Option<String> {
        self.note
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("occurrence", &self.occurrence)
            .field("attempt", &self.attempt)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

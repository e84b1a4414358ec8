//! [`ReleaseTracker`]: the progress of one lease's release.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    backend::lease::Released,
    error::{Error, ErrorKind, Result},
};

/// The progress of a lease's release, for backends whose server answers whether a released lock was
/// still held.
///
/// The tracker ensures what [`Lease::release`](crate::backend::Lease::release) promises:
///
/// - [`Released::Freed`] is reported once.
/// - A release can be retried after a failure.
/// - A release whose answer was lost is not mistaken for a loss of the lock.
///
/// ```
/// use leasehold_core::{Error, ErrorKind, ReleaseTracker, Released};
///
/// # fn ask_server(_: u32) -> Result<bool, Error> { Ok(true) }
/// let state = ReleaseTracker::new();
/// // In `renew`: refuse if `state.has_started()`. In `release`:
/// if state.start().is_none() {
///     let answer = ask_server(42);
///     let still_valid = || true; // the clock, compared with the deadline
///     assert_eq!(state.complete(answer, still_valid)?, Released::Freed);
/// }
/// assert_eq!(state.start(), Some(Released::AlreadyLost));
/// # Ok::<_, Error>(())
/// ```
#[derive(Default)]
pub struct ReleaseTracker {
    started: AtomicBool,
    /// Whether the answer to a release was lost. The lock may then be gone because that release
    /// worked.
    uncertain: AtomicBool,
    outcome: OnceLock<Released>,
}

impl ReleaseTracker {
    /// Creates the tracker of a lease that was just granted.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            started: AtomicBool::new(false),
            uncertain: AtomicBool::new(false),
            outcome: OnceLock::new(),
        }
    }

    /// Records that a release begins. Call it before the release is sent. If it returns an outcome,
    /// the lock is no longer held: return that outcome and send nothing.
    #[must_use]
    pub fn start(&self) -> Option<Released> {
        self.started.store(true, Ordering::Release);
        self.outcome.get().map(|_| Released::AlreadyLost)
    }

    /// Records that the backend sent the release again after an answer was lost. The answer to the
    /// second one may then say that the lock was not held, because the first one worked.
    pub fn sent_again(&self) {
        self.uncertain.store(true, Ordering::Release);
    }

    /// Returns whether a release has started, whatever its outcome. The lease must not be renewed
    /// any more.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Returns the reported outcome, if there is one.
    #[must_use]
    pub fn outcome(&self) -> Option<Released> {
        self.outcome.get().copied()
    }

    /// Turns the server's answer, whether the lease still held the lock, into an outcome.
    /// `still_valid` returns whether the lease's deadline is in the future. It is called only if
    /// that matters.
    ///
    /// # Errors
    /// Returns the error of the answer, after which the release may be retried. An error of kind
    /// [`ErrorKind::Lost`] is not returned: it means [`Released::AlreadyLost`].
    pub fn complete(
        &self,
        answer: Result<bool>,
        still_valid: impl FnOnce() -> bool,
    ) -> Result<Released> {
        let released = match answer {
            Ok(true) => Released::Freed,
            // The release was sent before the deadline, so that no other process can have freed the
            // lock.
            Ok(false) if self.uncertain.load(Ordering::Acquire) && still_valid() => Released::Freed,
            Ok(false) => Released::AlreadyLost,
            Err(error) if error.kind() == ErrorKind::Lost => Released::AlreadyLost,
            Err(error) => return Err(self.with_uncertainty(error)),
        };
        Ok(*self.outcome.get_or_init(|| released))
    }

    fn with_uncertainty(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Indeterminate {
            self.uncertain.store(true, Ordering::Release);
        }
        error
    }
}

impl fmt::Debug for ReleaseTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome() {
            Some(released) => write!(f, "{released:?}"),
            None if self.uncertain.load(Ordering::Relaxed) => f.write_str("Uncertain"),
            None if self.has_started() => f.write_str("Started"),
            None => f.write_str("Held"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: ErrorKind) -> Result<bool> {
        Err(Error::new(kind, "the server failed"))
    }

    fn never() -> bool {
        panic!("the clock is read although it does not matter")
    }

    fn completed(state: &ReleaseTracker, answer: Result<bool>, still_valid: bool) -> Released {
        state.complete(answer, || still_valid).unwrap()
    }

    #[test]
    fn freed_is_reported_once() {
        let state = ReleaseTracker::new();
        assert!(!state.has_started());
        assert_eq!(state.start(), None);
        assert!(state.has_started());
        assert_eq!(state.outcome(), None);
        assert_eq!(state.complete(Ok(true), never).unwrap(), Released::Freed);
        assert_eq!(state.outcome(), Some(Released::Freed));
        assert_eq!(state.start(), Some(Released::AlreadyLost));
    }

    #[test]
    fn overlapping_releases_report_the_same() {
        let state = ReleaseTracker::new();
        assert_eq!((state.start(), state.start()), (None, None));
        assert_eq!(completed(&state, Ok(true), true), Released::Freed);
        assert_eq!(completed(&state, Ok(false), true), Released::Freed);
    }

    #[test]
    fn release_of_a_lock_that_is_not_held_is_a_loss() {
        let state = ReleaseTracker::new();
        assert_eq!(
            state.complete(Ok(false), never).unwrap(),
            Released::AlreadyLost
        );
        assert_eq!(
            completed(&ReleaseTracker::new(), failure(ErrorKind::Lost), true),
            Released::AlreadyLost
        );
    }

    #[test]
    fn release_with_lost_reply_counts_while_lease_is_valid() {
        for (still_valid, truth) in [(true, Released::Freed), (false, Released::AlreadyLost)] {
            let state = ReleaseTracker::new();
            assert_eq!(
                state
                    .complete(failure(ErrorKind::Indeterminate), never)
                    .unwrap_err()
                    .kind(),
                ErrorKind::Indeterminate
            );
            assert_eq!(
                (state.outcome(), state.start()),
                (None, None),
                "it may be tried again"
            );
            assert_eq!(completed(&state, Ok(false), still_valid), truth);
        }
    }

    #[test]
    fn release_that_was_not_sent_is_certain() {
        let state = ReleaseTracker::new();
        assert_eq!(state.start(), None);
        assert_eq!(
            state
                .complete(failure(ErrorKind::Unavailable), never)
                .unwrap_err()
                .kind(),
            ErrorKind::Unavailable
        );
        assert!(state.has_started());
        assert_eq!(
            state.complete(Ok(false), never).unwrap(),
            Released::AlreadyLost
        );
    }

    #[test]
    fn debug_shows_the_progress_of_a_release() {
        let state = ReleaseTracker::new();
        assert_eq!(format!("{state:?}"), "Held");
        assert_eq!(state.start(), None);
        assert_eq!(format!("{state:?}"), "Started");
        state
            .complete(failure(ErrorKind::Indeterminate), never)
            .unwrap_err();
        assert_eq!(format!("{state:?}"), "Uncertain");
        completed(&state, Ok(true), true);
        assert_eq!(format!("{state:?}"), "Freed");
    }
}

//! [`acquire_with_retry`]: the default of
//! [`LockBackend::acquire`](crate::backend::LockBackend::acquire), which repeats attempts; and
//! [`RetryBudget`], which bounds the errors that it retries.

use std::{sync::Arc, time::Duration};

use crate::{
    backend::{
        attempt::{Attempt, Contention},
        lease::Lease,
        request::Request,
    },
    error::{Error, ErrorKind, Result},
};

/// The delay after a refusal that has neither a retry time nor a wake-up.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The delay after the first error. It doubles with each error, up to
/// [`RetryBudget::LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Calls `attempt` until the lock is granted or the request is cancelled. Between two attempts it
/// waits for the wake-up of the contention, for its retry time, or for the cancellation.
///
/// An error of any attempt is retried for up to one TTL, counted from the first error since the
/// backend's last answer, so that a restart of the server does not fail every waiter. After an
/// attempt of unknown outcome the request continues with a new owner. A grant that the old owner
/// may have left behind is then not mistaken for a grant of the new one.
///
/// # Errors
/// [`ErrorKind::Cancelled`] after [`Request::cancel`]. Otherwise, the error of `attempt`.
///
/// # Cancel safety
/// Not cancel safe: drive the future to completion, as the client does.
pub async fn acquire_with_retry<F, Fut>(request: Request, attempt: F) -> Result<Arc<dyn Lease>>
where
    F: Fn(Request) -> Fut,
    Fut: Future<Output = Result<Attempt>>,
{
    let mut request = request.with_waiting(|waiting| waiting.keeps_waiting = true);
    let mut retries = RetryBudget::none();
    loop {
        if request.is_cancelled() {
            return Err(cancelled());
        }
        match attempt(request.clone()).await {
            Ok(Attempt::Granted(lease)) => return Ok(lease),
            Ok(Attempt::Contended(contention)) => {
                request.set_contended();
                retries = RetryBudget::none();
                request = request.with_waiting(|waiting| waiting.yields = false);
                // Boxed, so that an attempt that is granted at once has a smaller future.
                let notified = Box::pin(wait(&request, contention)).await;
                // A waiter that was not notified in time may be behind a waiter that is dead.
                request = request.with_waiting(|waiting| waiting.in_order = notified);
            }
            Err(error) => {
                if error.kind() == ErrorKind::Indeterminate {
                    request = request.as_new_owner();
                }
                retries.spend(error, &request)?;
                Box::pin(sleep_unless_cancelled(&request, retries.pause())).await;
            }
        }
    }
}

/// Waits until the next attempt makes sense. Returns whether the backend notified the waiter.
async fn wait(request: &Request, contention: Contention) -> bool {
    let Contention {
        retry_after, wake, ..
    } = contention;
    match (wake, retry_after) {
        (None, retry_after) => {
            sleep_unless_cancelled(request, retry_after.unwrap_or(DEFAULT_RETRY_DELAY)).await;
            false
        }
        (Some(wake), None) => {
            tokio::select! {
                biased;
                () = wake => true,
                () = request.cancelled() => false,
            }
        }
        (Some(wake), Some(retry_after)) => {
            tokio::select! {
                biased;
                () = wake => true,
                () = sleep_unless_cancelled(request, retry_after) => false,
            }
        }
    }
}

pub(crate) async fn sleep_unless_cancelled(request: &Request, duration: Duration) {
    tokio::select! {
        biased;
        () = tokio::time::sleep(duration) => {}
        () = request.cancelled() => {}
    }
}

/// Creates the error of an acquisition whose caller was dropped.
#[must_use]
pub fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the acquisition was cancelled")
}

/// A bound on the errors of a waiter since the backend's last answer. Errors of any attempt are
/// retried for up to one TTL, so that a restart of the server does not fail every waiter.
///
/// Create a new budget after each answer. If the answer is that the lock is held, also call
/// [`Request::set_contended`], which starts the TTL again.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use leasehold_core::{LockKey, Result, backend::{Request, support::RetryBudget}};
///
/// # async fn ask_server() -> Result<u32> { Ok(7) }
/// let request = Request::new(LockKey::new("item/42")?);
/// let mut budget = RetryBudget::none();
/// let answer = loop {
///     match ask_server().await {
///         Ok(answer) => break answer,
///         Err(error) => budget.spend(error, &request)?,
///     }
///     tokio::time::sleep(budget.pause()).await;
/// };
/// assert_eq!(answer, 7);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RetryBudget {
    pause: Duration,
}

impl RetryBudget {
    /// The longest delay between two attempts.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);

    /// Creates a budget of which nothing is spent.
    #[must_use]
    pub fn none() -> Self {
        Self {
            pause: FIRST_PAUSE / 2,
        }
    }

    /// Records an error. If it returns `Ok`, wait for [`pause`](Self::pause) and try again.
    ///
    /// # Errors
    /// The error itself, if it is not [retryable](Error::is_retryable), or if the first error since
    /// the backend's last answer was a TTL ago.
    pub fn spend(&mut self, fault: Error, request: &Request) -> Result<()> {
        let now = request.now();
        if !fault.is_retryable() {
            return Err(fault);
        }
        let since = request.signal().note_fault(fault.clone(), now);
        if now.since(since) >= request.ttl().as_duration() {
            return Err(fault);
        }
        self.pause = (self.pause * 2).min(Self::LONGEST_PAUSE);
        Ok(())
    }

    /// Returns the delay before the next attempt.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{ClockDrift, ErrorKind, LockKey, TestClock};

    fn fault(kind: ErrorKind) -> Error {
        Error::new(kind, "a fault")
    }

    #[test]
    fn errors_are_retried_for_a_ttl_with_growing_delays() {
        let clock = Arc::new(TestClock::new());
        let request =
            Request::new(LockKey::new("k").unwrap()).with_clock(clock.clone(), ClockDrift::DEFAULT);
        let mut retries = RetryBudget::none();
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            retries
                .spend(fault(ErrorKind::Unavailable), &request)
                .unwrap();
            assert!(retries.pause() > last || retries.pause() == RetryBudget::LONGEST_PAUSE);
            last = retries.pause();
        }
        assert_eq!(last, RetryBudget::LONGEST_PAUSE);
        clock.suspend(request.ttl().as_duration());
        assert_eq!(
            retries
                .spend(fault(ErrorKind::Unavailable), &request)
                .unwrap_err()
                .kind(),
            ErrorKind::Unavailable
        );
        // Only an answer starts the TTL again.
        RetryBudget::none()
            .spend(fault(ErrorKind::Unavailable), &request)
            .unwrap_err();
        request.set_contended();
        RetryBudget::none()
            .spend(fault(ErrorKind::Unavailable), &request)
            .unwrap();
    }

    #[test]
    fn error_that_is_not_retryable_is_returned_at_once() {
        let request = Request::new(LockKey::new("k").unwrap());
        assert_eq!(
            RetryBudget::none()
                .spend(fault(ErrorKind::Denied), &request)
                .unwrap_err()
                .kind(),
            ErrorKind::Denied
        );
    }
}

//! [`RetryBudget`]: a bound on the errors that a waiter retries.

use std::time::Duration;

use crate::{
    backend::request::Request,
    error::{Error, Result},
};

/// The delay after the first error. It doubles with each error, up to
/// [`RetryBudget::LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);

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

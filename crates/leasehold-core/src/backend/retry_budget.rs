//! [`RetryBudget`]: faults that a waiter rides out.

use std::time::Duration;

use crate::{
    backend::request::Request,
    error::{Error, Result},
};

/// The pause after a fault, doubled up to [`RetryBudget::LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The faults of a waiter since the backend last answered it. They are retried for up to one TTL,
/// the first attempt's like any later one's, so that a restart of the server does not fail every
/// waiter.
///
/// When an answer comes, make a new one. If the answer is that another holds the lock, also call
/// [`Request::set_contended`]: the TTL starts again.
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
    /// No pause is longer.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);

    /// None yet.
    #[must_use]
    pub fn none() -> Self {
        Self {
            pause: FIRST_PAUSE / 2,
        }
    }

    /// Notes a fault. After it, wait for [`pause`](Self::pause) and try again.
    ///
    /// # Errors
    /// The fault itself, if it is not [retryable](Error::is_retryable), or if the first one since
    /// the backend's last answer is a TTL ago.
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

    /// How long to wait before the next try.
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
    fn it_is_ridden_out_for_a_ttl_with_longer_and_longer_pauses() {
        let clock = Arc::new(TestClock::new());
        let request =
            Request::new(LockKey::new("k").unwrap()).with_clock(clock.clone(), ClockDrift::DEFAULT);
        let mut trouble = RetryBudget::none();
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            trouble
                .spend(fault(ErrorKind::Unavailable), &request)
                .unwrap();
            assert!(trouble.pause() > last || trouble.pause() == RetryBudget::LONGEST_PAUSE);
            last = trouble.pause();
        }
        assert_eq!(last, RetryBudget::LONGEST_PAUSE);
        clock.suspend(request.ttl().as_duration());
        assert_eq!(
            trouble
                .spend(fault(ErrorKind::Unavailable), &request)
                .unwrap_err()
                .kind(),
            ErrorKind::Unavailable
        );
        // Only an answer ends the trouble.
        RetryBudget::none()
            .spend(fault(ErrorKind::Unavailable), &request)
            .unwrap_err();
        request.set_contended();
        RetryBudget::none()
            .spend(fault(ErrorKind::Unavailable), &request)
            .unwrap();
    }

    #[test]
    fn what_cannot_be_retried_is_told_at_once() {
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

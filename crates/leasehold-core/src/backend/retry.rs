//! [`acquire_with_retry`]: the default of
//! [`LockBackend::acquire`](crate::backend::LockBackend::acquire), which repeats attempts.

use std::{sync::Arc, time::Duration};

use crate::{
    backend::{
        attempt::{Attempt, Contention},
        lease::Lease,
        request::Request,
        retry_budget::RetryBudget,
    },
    error::{Error, ErrorKind, Result},
};

/// The delay after a refusal that has neither a retry time nor a wake-up.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_millis(100);

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

//! Waiting by attempts: what [`LockBackend::acquire`](crate::backend::LockBackend::acquire) does by
//! default.

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

/// How long to wait where a refusal says nothing about when to try again.
const UNTOLD: Duration = Duration::from_millis(100);

/// Tries until granted or cancelled; between attempts waits for the contention's wake, its retry
/// time, or the cancellation.
///
/// A fault, of the first attempt or of a later one, is retried for up to one TTL, counted from the
/// first fault since the backend last answered: a restart of the server does not fail every waiter.
/// After an attempt of unknown outcome the request goes on as a new owner, so that what the old one
/// may have left cannot be mistaken for ours.
///
/// # Errors
/// [`ErrorKind::Cancelled`] after [`Request::cancel`]; otherwise as `attempt`.
///
/// # Cancel safety
/// None: drive it to its end, as the client does.
pub async fn acquire_with_retry<F, Fut>(request: Request, attempt: F) -> Result<Arc<dyn Lease>>
where
    F: Fn(Request) -> Fut,
    Fut: Future<Output = Result<Attempt>>,
{
    let mut request = request.with_waiting(true);
    let mut trouble = RetryBudget::none();
    loop {
        if request.is_cancelled() {
            return Err(cancelled());
        }
        match attempt(request.clone()).await {
            Ok(Attempt::Granted(lease)) => return Ok(lease),
            Ok(Attempt::Contended(contention)) => {
                request.set_contended();
                trouble = RetryBudget::none();
                request = request.with_yield_to_waiters(false);
                // Boxed: whoever is granted at once need not carry the room for it.
                let woken = Box::pin(wait(&request, contention)).await;
                // Who was not woken in time may wait behind somebody who is dead.
                request = request.with_order(woken);
            }
            Err(error) => {
                if error.kind() == ErrorKind::Indeterminate {
                    request = request.as_new_owner();
                }
                trouble.spend(error, &request)?;
                Box::pin(sleep_unless_cancelled(&request, trouble.pause())).await;
            }
        }
    }
}

/// Whether it was woken.
async fn wait(request: &Request, contention: Contention) -> bool {
    let Contention {
        retry_after, wake, ..
    } = contention;
    match (wake, retry_after) {
        (None, retry_after) => {
            sleep_unless_cancelled(request, retry_after.unwrap_or(UNTOLD)).await;
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

/// The error of an acquisition whose caller has gone away.
#[must_use]
pub fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the acquisition was cancelled")
}

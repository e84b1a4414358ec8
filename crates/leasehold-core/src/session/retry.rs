//! Retries in a new session: [`attempt_with_session_retry`], [`queue_with_session_retry`].

use std::sync::Arc;

use crate::{
    backend::{
        lease::Lease,
        request::Request,
        retry::{RetryBudget, cancelled},
    },
    error::{Error, ErrorKind, Result},
};

/// The number of times an acquisition is retried at once because its session ended.
const MAX_SESSION_RETRIES: u32 = 3;

/// Runs one attempt. If its session ends, retries in another session with a new acquisition id.
///
/// # Errors
/// Returns [`ErrorKind::Unavailable`] if sessions keep ending, and otherwise the error of
/// `attempt`, except [`ErrorKind::Lost`].
///
/// # Cancel safety
/// Not cancel safe: the future must be driven to completion, as the client does.
pub async fn attempt_with_session_retry<T, Fut>(
    mut request: Request,
    attempt: impl Fn(Request) -> Fut,
) -> Result<T>
where
    Fut: Future<Output = Result<T>>,
{
    let mut restarts = 0;
    loop {
        match attempt(request.clone()).await {
            Err(error) if error.kind() == ErrorKind::Lost && restarts < MAX_SESSION_RETRIES => {
                restarts += 1;
                request = request.as_new_owner();
            }
            Err(error) if error.kind() == ErrorKind::Lost => return Err(sessions_end(error)),
            tried => return tried,
        }
    }
}

/// Queues until the lock is granted or the request is cancelled.
///
/// `queue` enters the queue, waits, and leaves nothing on the server if it fails. It calls
/// [`Request::set_contended`] whenever the server has answered that another holder has the lock.
///
/// If the session ends, `queue` is called again in another session with a new acquisition id.
/// Retryable errors are retried for up to one TTL, counted from the first one since the server last
/// answered.
///
/// # Errors
/// Returns [`ErrorKind::Cancelled`] after a cancellation, [`ErrorKind::Unavailable`] if sessions
/// keep ending, and otherwise the error of `queue`, except [`ErrorKind::Lost`].
///
/// # Cancel safety
/// Not cancel safe: the future must be driven to completion, as the client does.
pub async fn queue_with_session_retry<Fut>(
    request: Request,
    queue: impl Fn(Request) -> Fut,
) -> Result<Arc<dyn Lease>>
where
    Fut: Future<Output = Result<Arc<dyn Lease>>>,
{
    let mut request = request.with_waiting(|waiting| waiting.keeps_waiting = true);
    let (mut restarts, mut retries) = (0, RetryBudget::none());
    loop {
        if request.is_cancelled() {
            return Err(cancelled());
        }
        let begun = request.now();
        let error = match queue(request.clone()).await {
            Ok(lease) => return Ok(lease),
            Err(error) => error,
        };
        if request.is_contended_after(begun)
            && request.now().since(begun) > RetryBudget::LONGEST_PAUSE
        {
            // The request waited undisturbed for a while, so this fault is not a repetition of the
            // last.
            (restarts, retries) = (0, RetryBudget::none());
        }
        // A new acquisition id ensures that no entry of an earlier try is mistaken for this one.
        request = request
            .as_new_owner()
            .with_waiting(|waiting| waiting.yields = false);
        let lost = error.kind() == ErrorKind::Lost;
        retries.spend(if lost { sessions_end(error) } else { error }, &request)?;
        restarts += u32::from(lost);
        if lost && restarts <= MAX_SESSION_RETRIES {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(retries.pause()) => {}
            () = request.cancelled() => {}
        }
    }
}

/// Returns the error for sessions that keep ending. No lock is held then.
fn sessions_end(error: Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the session ended before the lock was granted; try again",
    )
    .with_source(error)
}

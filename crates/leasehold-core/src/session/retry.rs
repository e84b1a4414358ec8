//! Asking again in a new session when one ends: [`attempt_with_session_retry`],
//! [`queue_with_session_retry`].

use std::sync::Arc;

use crate::{
    backend::Lease,
    error::{Error, ErrorKind, Result},
    request::Request,
    retry::cancelled,
    retry_budget::RetryBudget,
};

/// How often an acquisition begins anew at once because its session ends under it.
const MAX_SESSION_RETRIES: u32 = 3;

/// One attempt, begun anew in another session, as another owner, if its session ends under it.
///
/// # Errors
/// [`ErrorKind::Unavailable`] if sessions end again and again; otherwise as `attempt`, except for
/// [`ErrorKind::Lost`].
///
/// # Cancel safety
/// None: drive it to its end, as the client does.
pub async fn attempt_with_session_retry<T, Fut>(
    mut request: Request,
    attempt: impl Fn(Request) -> Fut,
) -> Result<T>
where
    Fut: Future<Output = Result<T>>,
{
    let mut starts = 0;
    loop {
        match attempt(request.clone()).await {
            Err(error) if error.kind() == ErrorKind::Lost && starts < MAX_SESSION_RETRIES => {
                starts += 1;
                request = request.as_new_owner();
            }
            Err(error) if error.kind() == ErrorKind::Lost => return Err(sessions_end(error)),
            tried => return tried,
        }
    }
}

/// Queues until granted or cancelled. `queue` takes a place, waits, and leaves nothing behind if it
/// fails. Whenever the server has answered it that another holds the lock it calls
/// [`Request::set_contended`].
///
/// When its session ends it queues again in another one, as another owner. A fault is retried for
/// up to one TTL, counted from the first one since the server last answered.
///
/// # Errors
/// [`ErrorKind::Cancelled`] after a cancellation; [`ErrorKind::Unavailable`] if sessions end again
/// and again; otherwise as `queue`, except for [`ErrorKind::Lost`].
///
/// # Cancel safety
/// None: drive it to its end, as the client does.
pub async fn queue_with_session_retry<Fut>(
    request: Request,
    queue: impl Fn(Request) -> Fut,
) -> Result<Arc<dyn Lease>>
where
    Fut: Future<Output = Result<Arc<dyn Lease>>>,
{
    let mut request = request.with_waiting(true);
    let (mut starts, mut trouble) = (0, RetryBudget::none());
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
            // It waited in peace for a while: this is another trouble than the last.
            (starts, trouble) = (0, RetryBudget::none());
        }
        // Who queues again is another one: nothing that an earlier try left behind can be mistaken
        // for it.
        request = request.as_new_owner().with_yield_to_waiters(false);
        let lost = error.kind() == ErrorKind::Lost;
        trouble.spend(if lost { sessions_end(error) } else { error }, &request)?;
        starts += u32::from(lost);
        if lost && starts <= MAX_SESSION_RETRIES {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(trouble.pause()) => {}
            () = request.cancelled() => {}
        }
    }
}

/// What is said if sessions end again and again: nothing is held.
fn sessions_end(error: Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the session ended before the lock was granted; try again",
    )
    .with_source(error)
}

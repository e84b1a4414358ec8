//! Asking again in a new session when one ends: [`attempt_afresh`], [`queue_afresh`].

use std::sync::Arc;

use crate::{
    attempts::cancelled,
    backend::Lease,
    error::{Error, ErrorKind, Result},
    request::Request,
    trouble::Trouble,
};

/// How often an acquisition begins anew at once because its session ends under it.
const FRESH_STARTS: u32 = 3;

/// One attempt, begun anew in another session, as another owner, if its session ends under it.
///
/// # Errors
/// [`ErrorKind::Unavailable`] if sessions end again and again; otherwise as `attempt`, except for
/// [`ErrorKind::Lost`].
///
/// # Cancel safety
/// None: drive it to its end, as the client does.
pub async fn attempt_afresh<T, Fut>(mut request: Request, attempt: impl Fn(Request) -> Fut) -> Result<T>
where
    Fut: Future<Output = Result<T>>,
{
    let mut starts = 0;
    loop {
        match attempt(request.clone()).await {
            Err(error) if error.kind() == ErrorKind::Lost && starts < FRESH_STARTS => {
                starts += 1;
                request = request.as_new_owner();
            }
            Err(error) if error.kind() == ErrorKind::Lost => return Err(sessions_end(error)),
            tried => return tried,
        }
    }
}

/// Queues until granted or cancelled. `queue` takes a place, waits, and leaves nothing behind if it fails. Whenever the server
/// has answered it that another holds the lock it calls [`Request::set_contended`].
///
/// When its session ends it queues again in another one, as another owner. A fault is retried for up to one TTL, counted from
/// the first one since the server last answered.
///
/// # Errors
/// [`ErrorKind::Cancelled`] after a cancellation; [`ErrorKind::Unavailable`] if sessions end again and again; otherwise as
/// `queue`, except for [`ErrorKind::Lost`].
///
/// # Cancel safety
/// None: drive it to its end, as the client does.
pub async fn queue_afresh<Fut>(request: Request, queue: impl Fn(Request) -> Fut) -> Result<Arc<dyn Lease>>
where
    Fut: Future<Output = Result<Arc<dyn Lease>>>,
{
    let mut request = request.with_waiting(true);
    let (mut starts, mut trouble) = (0, Trouble::none());
    loop {
        if request.is_cancelled() {
            return Err(cancelled());
        }
        let begun = request.now();
        let error = match queue(request.clone()).await {
            Ok(lease) => return Ok(lease),
            Err(error) => error,
        };
        if request.is_contended_after(begun) && request.now().since(begun) > Trouble::LONGEST_PAUSE {
            // It waited in peace for a while: this is another trouble than the last.
            (starts, trouble) = (0, Trouble::none());
        }
        // Who queues again is another one: nothing that an earlier try left behind can be mistaken for it.
        request = request.as_new_owner().with_courtesy(false);
        let lost = error.kind() == ErrorKind::Lost;
        trouble.ride_out(if lost { sessions_end(error) } else { error }, &request)?;
        starts += u32::from(lost);
        if lost && starts <= FRESH_STARTS {
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
    Error::new(ErrorKind::Unavailable, "the session ended before the lock was granted; try again").with_source(error)
}

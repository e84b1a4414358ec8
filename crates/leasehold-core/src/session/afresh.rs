//! Asking again in a new session when one ends: [`attempt_afresh`], [`queue_afresh`].

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    attempts::cancelled,
    backend::Lease,
    error::{Error, ErrorKind, Result},
    request::Request,
    trouble::Trouble,
};

/// How often an acquisition that was not answered yet begins anew because its session ends under it.
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

/// Set by who queues once the server has answered: from then on, faults are ridden out.
#[derive(Clone, Debug, Default)]
pub struct Answered(Arc<AtomicBool>);

impl Answered {
    /// The server has answered.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Queues until granted or cancelled. `queue` takes a place, waits, and leaves nothing behind if it fails.
///
/// When its session ends it queues again in another one, as another owner. Before the server has answered a fault is told at
/// once; later it is ridden out for up to a TTL.
///
/// # Errors
/// [`ErrorKind::Cancelled`] after a cancellation; [`ErrorKind::Unavailable`] if sessions end again and again; otherwise as
/// `queue`, except for [`ErrorKind::Lost`].
///
/// # Cancel safety
/// None: drive it to its end, as the client does.
pub async fn queue_afresh<Fut>(request: Request, queue: impl Fn(Request, Answered) -> Fut) -> Result<Arc<dyn Lease>>
where
    Fut: Future<Output = Result<Arc<dyn Lease>>>,
{
    let mut request = request.with_waiting(true);
    let (answered, mut starts, mut trouble) = (Answered::default(), 0, Trouble::none());
    loop {
        if request.is_cancelled() {
            return Err(cancelled());
        }
        let begun = request.now();
        let error = match queue(request.clone(), answered.clone()).await {
            Ok(lease) => return Ok(lease),
            Err(error) => error,
        };
        if answered.is_set() && request.now().since(begun) > Trouble::LONGEST_PAUSE {
            // It waited in peace for a while: this is another trouble than the last.
            (starts, trouble) = (0, Trouble::none());
        }
        // Who queues again is another one: nothing that an earlier try left behind can be mistaken for it.
        request = request.as_new_owner().with_courtesy(false);
        if error.kind() == ErrorKind::Lost {
            starts += 1;
            if starts > FRESH_STARTS && !answered.is_set() {
                return Err(sessions_end(error));
            }
            trouble.ride_out(sessions_end(error), &request)?;
            continue;
        }
        if !answered.is_set() {
            return Err(error);
        }
        trouble.ride_out(error, &request)?;
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

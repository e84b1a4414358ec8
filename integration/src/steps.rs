//! Steps that many tests share. They panic if they fail.

use std::{
    thread,
    time::{Duration, Instant},
};

use leasehold_core::{Error, ErrorKind, LockClient, LockGuard, Ttl};

use crate::{panics, worker::client};

/// The timeout of operations that must succeed, long enough for a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Returns a duration of so many milliseconds.
#[must_use]
pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Connects a client with this TTL. Panics are recorded from now on; see [`crate::panics`].
///
/// # Panics
/// It cannot connect.
pub async fn client_of(url: &str, ttl_ms: u64) -> LockClient {
    panics::record();
    let ttl = Ttl::from_millis(ttl_ms).unwrap();
    connected(|| client(url, ttl, "test")).await.unwrap()
}

/// Connects, and repeats it while the error is retryable. A connection has a short timeout, within
/// which the server of a busy machine may not answer.
///
/// # Errors
/// The error is not retryable, or [`SOON`] has passed.
pub async fn connected<T, F>(connect: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let end = Instant::now() + SOON;
    loop {
        match connect().await {
            Err(error) if error.is_retryable() && Instant::now() < end => {
                tokio::time::sleep(millis(50)).await;
            }
            result => return result,
        }
    }
}

/// Waits until the lease of a guard has been renewed.
///
/// # Panics
/// The lease is lost.
pub async fn renewed(guard: &LockGuard) {
    let before = guard.deadline().moment();
    while guard.deadline().moment() <= before {
        assert!(guard.is_held(), "the lease is lost and not renewed");
        tokio::time::sleep(millis(10)).await;
    }
}

/// Returns the token of a guard.
///
/// # Panics
/// It has none.
#[must_use]
#[track_caller]
pub fn token(guard: &LockGuard) -> u64 {
    guard
        .fencing_token()
        .expect("the exclusive guard has no token")
        .get()
}

/// Returns whether this kind of error may follow a fault: the call may succeed later, or the lease
/// is lost.
#[must_use]
pub fn is_a_fault(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable | ErrorKind::Indeterminate | ErrorKind::Lost
    )
}

/// Waits until `reached`, for at most `limit`.
///
/// # Panics
/// The limit has passed.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !reached() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(millis(5));
    }
}

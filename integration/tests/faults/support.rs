//! Steps that several cases share.

use std::time::Instant;

use futures_util::future::join_all;
use leasehold_core::{LockClient, LockGuard};
use leasehold_integration::{
    leftovers,
    proxy::Direction,
    steps::{is_a_fault, millis},
    worker::Answer,
};

pub(crate) use leasehold_integration::steps::SOON;

use crate::fixture::Fixture;

/// Returns token and deadline of a grant. A permit has the token 0.
#[track_caller]
pub(crate) fn granted(answer: Answer) -> (u64, u64) {
    match answer {
        Answer::Granted { token, deadline_ns } => (token.unwrap_or(0), deadline_ns),
        other => panic!("not granted: {other:?}"),
    }
}

/// Waits for something that only a hang prevents.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(SOON, future).await;
    done.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

/// Acquires a lock, and retries after each fault.
pub(crate) async fn locked(client: &LockClient, key: &str) -> LockGuard {
    let locking = async {
        loop {
            match client.mutex(key).lock().await {
                Ok(guard) => return guard,
                Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
            }
            tokio::time::sleep(millis(20)).await;
        }
    };
    soon("the lock is granted", locking).await
}

/// Waits until `count` waiters of the lock `k` are registered.
pub(crate) async fn until_waiting(client: &LockClient, count: usize) {
    let registered = async {
        while client
            .inspect("k")
            .await
            .is_ok_and(|seen| seen.waiters.len() < count)
        {
            tokio::time::sleep(millis(10)).await;
        }
    };
    soon(&format!("{count} wait"), registered).await;
}

/// Waits until no lock is held or waited for.
#[track_caller]
pub(crate) fn nothing_left(fixture: &dyn Fixture) {
    leftovers::nothing_left(SOON, || fixture.leftovers()).unwrap();
}

/// Waits until `reached`.
#[track_caller]
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !reached() {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        std::thread::sleep(millis(5));
    }
}

/// Cuts connections after each of the first chunks in each direction, all at the same time, by
/// `cut_within`, which returns whether a connection was cut. Verifies that `least` of them were,
/// and that nothing is left.
pub(crate) async fn cut_at_each<F: Future<Output = bool>>(
    fixture: &dyn Fixture,
    (chunks, least): (u64, usize),
    cut_within: impl Fn((Direction, u64)) -> F,
) {
    let both = [Direction::ClientToServer, Direction::ServerToClient];
    let points = both
        .into_iter()
        .flat_map(|direction| (0..chunks).map(move |chunks| (direction, chunks)));
    let cuts = join_all(points.map(cut_within)).await;
    let cuts = cuts.into_iter().filter(|cut| *cut).count();
    assert!(cuts >= least, "only {cuts} connections were cut");
    nothing_left(fixture);
}

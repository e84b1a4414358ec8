//! Steps that several cases share.

use std::{
    env,
    time::{Duration, Instant},
};

use leasehold_core::{LockClient, LockGuard};
use leasehold_integration::{
    leftovers,
    steps::{is_a_fault, millis},
    worker::Answer,
};

use crate::fixture::Fixture;

/// The timeout of operations that must succeed, long enough for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

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

/// Returns the seed of a randomized case, and prints it.
pub(crate) fn seed() -> u64 {
    let seed = env::var("LEASEHOLD_SEED").ok();
    let seed = seed.map(|seed| seed.parse().expect("LEASEHOLD_SEED must be a number"));
    let seed = seed.unwrap_or_else(rand::random);
    println!("LEASEHOLD_SEED={seed}");
    seed
}

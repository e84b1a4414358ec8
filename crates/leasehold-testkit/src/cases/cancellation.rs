//! Cancelled acquisitions.

use std::sync::Arc;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{
        SOON, client, granted_within, inspected, key, lifetime, must, poll_times, release, request,
    },
};

/// Checks that a cancelled waiter leaves the queue and is never granted the lock.
pub async fn cancelled_waiter_leaves_nothing(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "cancelled");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    let mutex = other.mutex(&key);
    let waited = tokio::time::timeout(SOON, mutex.lock()).await;
    assert!(waited.is_err(), "a held lock is waited for");
    let seen = inspected(&holder, &key, |seen| seen.waiters.is_empty()).await;
    assert!(
        seen.waiters.is_empty(),
        "a cancelled waiter is still in the queue: {seen:?}"
    );
    must(guard.release().await, "a release is answered");
    tokio::time::sleep(SOON).await;
    let seen = inspected(&holder, &key, |seen| seen.holders.is_empty()).await;
    assert!(
        seen.holders.is_empty(),
        "the lock was granted to a cancelled waiter: {seen:?}"
    );
}

/// Checks that an acquisition that is dropped after any number of polls leaves no lock behind. The
/// lock, free or held at the time, can be acquired soon, and two TTLs later nothing is held.
pub async fn dropped_at_every_poll_point_leaves_nothing(fixture: &dyn BackendFixture) {
    const POINTS: usize = 12;
    let (dropper, holder) = (client(fixture).await, client(fixture).await);
    let other = fixture.open().await;
    let mut keys = Vec::new();
    for point in 0..POINTS {
        for contended in [false, true] {
            let key = key(fixture, "dropped_at");
            let guard = if contended {
                Some(must(
                    holder.mutex(&key).lock().await,
                    "a free lock is granted",
                ))
            } else {
                None
            };
            let mutex = dropper.mutex(&key);
            let mut acquisition = Box::pin(mutex.lock());
            // A contended acquisition is not polled again before the release.
            let polled = tokio::time::timeout(SOON / 10, poll_times(&mut acquisition, point)).await;
            let release_holder = async {
                if let Some(guard) = guard {
                    must(guard.release().await, "a release is answered");
                }
            };
            if point % 2 == 0 {
                release_holder.await;
                drop(acquisition);
            } else {
                drop(acquisition);
                release_holder.await;
            }
            drop(polled);
            keys.push(key);
        }
    }
    for key in &keys {
        let claim = "a lock that was granted to a dropped future is released soon";
        let lease =
            granted_within(fixture, &other, key, fixture.ttl().as_duration() / 2, claim).await;
        release(&lease).await;
    }
    tokio::time::sleep(lifetime(fixture) * 2).await;
    let inspects = other.capabilities().inspect;
    for key in &keys {
        if inspects {
            let seen = must(other.inspect(key).await, "an inspection is answered");
            assert!(
                seen.holders.is_empty(),
                "two TTLs later there is still a holder: {seen:?}"
            );
            assert!(
                seen.waiters.is_empty(),
                "two TTLs later there is still a waiter: {seen:?}"
            );
        }
        let attempt = Arc::clone(&other)
            .try_acquire(request(fixture, &other, key))
            .await;
        match must(attempt, "an attempt is answered") {
            leasehold_core::backend::Attempt::Granted(lease) => release(&lease).await,
            leasehold_core::backend::Attempt::Contended(_) => {
                panic!("two TTLs later the lock is still held")
            }
        }
    }
}

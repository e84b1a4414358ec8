//! Releases and their reported outcome.

use std::sync::Arc;

use leasehold_core::Released;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{client, granted, granted_within, key, let_expire, must, refused, release, request},
};

/// Checks that a release after the expiry does not affect the next holder: neither another client
/// nor a newer lock of the same client.
pub async fn stale_release_does_not_free_successor(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    for (successor, whose) in [(&other, "another client's"), (&one, "the same client's")] {
        let key = key(fixture, "stale_release");
        let first = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
        let_expire(fixture).await;
        let second = granted(
            successor,
            request(fixture, successor, &key),
            "an expired lock is granted",
        )
        .await;
        release(&first).await;
        let third = fixture.open().await;
        refused(
            &third,
            request(fixture, &third, &key),
            &format!("{whose} newer grant outlives a stale release"),
        )
        .await;
        release(&second).await;
    }
}

/// Checks that the first release frees the lock, and that a second one has no effect and reports
/// so.
pub async fn release_is_idempotent_and_reports_outcome(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let key = key(fixture, "truthful");
    let lease = granted(
        &backend,
        request(fixture, &backend, &key),
        "a free lock is granted",
    )
    .await;
    let first = must(Arc::clone(&lease).release().await, "a release is answered");
    assert_eq!(first, Released::Freed, "the first release frees");
    let second = must(
        Arc::clone(&lease).release().await,
        "a second release is answered",
    );
    assert_eq!(
        second,
        Released::AlreadyLost,
        "the second release reports that the lock was not held"
    );
    let next = granted(
        &backend,
        request(fixture, &backend, &key),
        "a released lock is granted",
    )
    .await;
    release(&next).await;
}

/// Checks that dropping a guard releases the lock in the background.
pub async fn guard_dropped_releases(fixture: &dyn BackendFixture) {
    let holder = client(fixture).await;
    let key = key(fixture, "dropped");
    drop(must(
        holder.mutex(&key).lock().await,
        "a free lock is granted",
    ));
    frees_soon(fixture, &key, "a dropped guard's lock is free soon").await;
}

/// Checks that a guard that is dropped by a panic releases the lock.
pub async fn guard_dropped_in_a_panic_releases(fixture: &dyn BackendFixture) {
    let holder = client(fixture).await;
    let key = key(fixture, "panic");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = guard;
        // `panic!` would run the hook, which prints what looks like a failure.
        std::panic::resume_unwind(Box::new("on purpose"));
    }));
    assert!(unwound.is_err(), "the closure panicked");
    frees_soon(fixture, &key, "the guard's lock is free soon after a panic").await;
}

/// Checks that a guard that is dropped on a thread without a runtime releases the lock, and neither
/// panics nor blocks.
pub async fn guard_dropped_outside_a_runtime_releases(fixture: &dyn BackendFixture) {
    let holder = client(fixture).await;
    let key = key(fixture, "outside");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    assert!(
        std::thread::spawn(move || drop(guard)).join().is_ok(),
        "dropping a guard outside of a runtime panicked"
    );
    frees_soon(
        fixture,
        &key,
        "the lock is free soon after a drop outside of a runtime",
    )
    .await;
}

async fn frees_soon(fixture: &dyn BackendFixture, key: &leasehold_core::LockKey, claim: &str) {
    let other = fixture.open().await;
    let lease = granted_within(fixture, &other, key, fixture.ttl().as_duration() / 2, claim).await;
    release(&lease).await;
}

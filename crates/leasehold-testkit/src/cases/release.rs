//! Giving back, and telling the truth about it.

use std::sync::Arc;

use leasehold_core::Released;

use crate::{
    fixtures::{client, granted, granted_within, key, let_expire, must, refused, release, request},
    subject::Subject,
};

/// A release that comes after the expiry does not touch the next holder, neither another client's
/// nor a newer grant of the same client.
pub async fn stale_release_does_not_free_successor(subject: &dyn Subject) {
    let (one, other) = (subject.open().await, subject.open().await);
    for (successor, whose) in [(&other, "another client's"), (&one, "the same client's")] {
        let key = key(subject, "stale_release");
        let first = granted(&one, request(subject, &one, &key), "a free lock is granted").await;
        let_expire(subject).await;
        let second = granted(
            successor,
            request(subject, successor, &key),
            "an expired lock is granted",
        )
        .await;
        release(&first).await;
        let third = subject.open().await;
        refused(
            &third,
            request(subject, &third, &key),
            &format!("{whose} newer grant outlives a stale release"),
        )
        .await;
        release(&second).await;
    }
}

/// The first release frees; the second does nothing and says so; so does one of a lock that
/// expired.
pub async fn release_is_idempotent_and_truthful(subject: &dyn Subject) {
    let backend = subject.open().await;
    let key = key(subject, "truthful");
    let lease = granted(
        &backend,
        request(subject, &backend, &key),
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
        "the second release says that there was nothing to free"
    );
    let next = granted(
        &backend,
        request(subject, &backend, &key),
        "a released lock is granted",
    )
    .await;
    release(&next).await;
}

/// Dropping a guard releases in the background.
pub async fn guard_dropped_releases(subject: &dyn Subject) {
    let holder = client(subject).await;
    let key = key(subject, "dropped");
    drop(must(
        holder.mutex(&key).lock().await,
        "a free lock is granted",
    ));
    frees_soon(subject, &key, "a dropped guard's lock is free soon").await;
}

/// A panic drops the guard, and that releases.
pub async fn guard_dropped_in_a_panic_releases(subject: &dyn Subject) {
    let holder = client(subject).await;
    let key = key(subject, "panic");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = guard;
        // Not `panic!`: the hook would print what looks like a failure.
        std::panic::resume_unwind(Box::new("on purpose"));
    }));
    assert!(unwound.is_err(), "it panicked");
    frees_soon(subject, &key, "the guard's lock is free soon after a panic").await;
}

/// A guard that is dropped on a thread without a runtime neither panics nor blocks, and releases.
pub async fn guard_dropped_outside_a_runtime_releases(subject: &dyn Subject) {
    let holder = client(subject).await;
    let key = key(subject, "outside");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    assert!(
        std::thread::spawn(move || drop(guard)).join().is_ok(),
        "dropping a guard outside of a runtime panicked"
    );
    frees_soon(
        subject,
        &key,
        "the lock is free soon after a drop outside of a runtime",
    )
    .await;
}

async fn frees_soon(subject: &dyn Subject, key: &leasehold_core::LockKey, claim: &str) {
    let other = subject.open().await;
    let lease = granted_within(subject, &other, key, subject.ttl().as_duration() / 2, claim).await;
    release(&lease).await;
}

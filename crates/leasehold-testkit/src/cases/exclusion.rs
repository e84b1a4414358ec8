//! Mutual exclusion.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{at_the_latest, client, granted, key, must, must_grant, refused, release, request},
};

/// Checks that a client is refused the lock that another client holds, until its release.
pub async fn two_clients_exclude_each_other(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "two_clients");
    let first = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
    refused(
        &other,
        request(fixture, &other, &key),
        "another client's lock is refused",
    )
    .await;
    release(&first).await;
    let second = granted(
        &other,
        request(fixture, &other, &key),
        "a released lock is granted to another",
    )
    .await;
    refused(
        &one,
        request(fixture, &one, &key),
        "the earlier holder is refused",
    )
    .await;
    release(&second).await;
}

/// Checks that two acquisitions of one client exclude each other. Sharing a connection, a process
/// or a lock object does not make a lock re-entrant.
pub async fn two_acquisitions_of_one_client_exclude_each_other(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let key = key(fixture, "two_acquisitions");
    let first = granted(
        &backend,
        request(fixture, &backend, &key),
        "a free lock is granted",
    )
    .await;
    refused(
        &backend,
        request(fixture, &backend, &key),
        "the same connection's next acquisition is refused",
    )
    .await;
    release(&first).await;

    let client = client(fixture).await;
    let (one, other) = (client.mutex(&key), client.mutex(&key));
    let guard = must(one.lock().await, "a free lock is granted");
    let again = must(other.try_lock().await, "an attempt is answered");
    assert!(
        again.is_none(),
        "two objects of one name exclude each other"
    );
    must(guard.release().await, "a release is answered");
}

/// Checks that `try_lock` of a held lock returns `None` at once.
pub async fn try_lock_reports_contended(fixture: &dyn BackendFixture) {
    let (one, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "try_lock");
    let guard = must_grant(
        one.mutex(&key).try_lock().await,
        "try_lock of a free lock locks",
    );
    let began = fixture.clock().now();
    let refused = must(
        other.mutex(&key).try_lock().await,
        "contention is not an error",
    );
    assert!(refused.is_none(), "try_lock of a held lock locked it");
    assert!(
        fixture.clock().now().since(began)
            < at_the_latest(fixture, fixture.ttl().as_duration() / 2),
        "try_lock does not wait"
    );
    must(guard.release().await, "a release is answered");
    let guard = must_grant(
        other.mutex(&key).try_lock().await,
        "try_lock after a release locks",
    );
    must(guard.release().await, "a release is answered");
}

/// Checks that each of 64 waiters is granted the lock exactly once. Each task increments a counter
/// with a separate read and write, and no update is lost.
pub async fn sixty_four_waiters_are_all_served_once(fixture: &dyn BackendFixture) {
    const TASKS: u32 = 64;
    let client = client(fixture).await;
    let key = key(fixture, "sixty_four");
    let number = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (mutex, number) = (client.mutex(&key), Arc::clone(&number));
            tokio::spawn(async move {
                let guard = must(mutex.lock().await, "a waiter is granted in the end");
                let read = number.load(Ordering::Acquire);
                tokio::task::yield_now().await;
                number.store(read + 1, Ordering::Release);
                must(guard.release().await, "a release is answered");
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.is_ok(), "a waiter failed");
    }
    assert_eq!(number.load(Ordering::Acquire), TASKS, "every update counts");
}

//! Renewals.

use std::sync::Arc;

use leasehold_core::ErrorKind;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{
        client, granted, granted_within, key, let_expire, lifetime, must, poll_once, refused,
        release, request,
    },
};

/// Checks that renewals extend a lock for as long as its guard lives.
pub async fn renewal_extends(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, fixture.open().await);
    let key = key(fixture, "renewal");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    let first = guard.deadline();
    for _ in 0..3 {
        tokio::time::sleep(fixture.ttl().as_duration()).await;
        assert!(
            guard.is_held(),
            "a renewed guard is held: {:?}",
            guard.loss()
        );
        refused(
            &other,
            request(fixture, &other, &key),
            "a renewed lock is refused to others",
        )
        .await;
    }
    assert!(guard.deadline() > first, "renewals move the deadline");
    must(guard.release().await, "a release is answered");
}

/// Checks that a renewal after the deadline fails with [`ErrorKind::Lost`] and does not extend the
/// deadline.
pub async fn late_renewal_does_not_revive(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "late_renewal");
    let lease = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
    let_expire(fixture).await;
    let renewed = Arc::clone(&lease)
        .renew()
        .await
        .map_err(|error| error.kind());
    assert_eq!(
        renewed,
        Err(ErrorKind::Lost),
        "a renewal after the expiry reports that the lock is lost"
    );
    assert!(
        lease.valid_until().is_past(fixture.clock().now()),
        "the deadline stays in the past"
    );
    let next = granted(
        &other,
        request(fixture, &other, &key),
        "the lock stays free",
    )
    .await;
    release(&next).await;
}

/// Checks that no renewal follows a release: a lock that was renewed and then released stays free.
pub async fn nothing_renews_after_release(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, fixture.open().await);
    let key = key(fixture, "outlives");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    tokio::time::sleep(fixture.ttl().as_duration()).await;
    must(guard.release().await, "a release is answered");
    tokio::time::sleep(fixture.ttl().as_duration()).await;
    let lease = granted(
        &other,
        request(fixture, &other, &key),
        "a released lock stays free",
    )
    .await;
    release(&lease).await;
}

/// Checks that a renewal and a release that overlap leave the lock free, in any order.
pub async fn renewal_racing_release_never_leaves_it_held(fixture: &dyn BackendFixture) {
    const ROUNDS: usize = 100;
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "race");
    for round in 0..ROUNDS {
        let lease = granted_within(
            fixture,
            &one,
            &key,
            lifetime(fixture),
            "the previous round left the lock free",
        )
        .await;
        let mut renewal = Arc::clone(&lease).renew();
        let mut release_it = Arc::clone(&lease).release();
        match round % 4 {
            0 => {
                let renewed = poll_once(&mut renewal).await;
                must(release_it.await, "a release is answered");
                if renewed.is_none() {
                    drop(renewal.await);
                }
            }
            1 => {
                let released = poll_once(&mut release_it).await;
                drop(renewal.await);
                if released.is_none() {
                    must(release_it.await, "a release is answered");
                }
            }
            2 => drop(tokio::join!(renewal, release_it)),
            _ => drop(tokio::join!(release_it, renewal)),
        }
        let claim = "a lock is free after a release that overlapped a renewal";
        let next = granted(&other, request(fixture, &other, &key), claim).await;
        release(&next).await;
    }
}

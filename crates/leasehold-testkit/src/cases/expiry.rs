//! Deadlines and expiry: a lock is a lease, which ends by itself.

use std::{sync::Arc, time::Duration};

use leasehold_core::{ErrorKind, LossReason, Renewal, backend::Attempt};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{
        SOON, attempt, client_with, granted, granted_within, key, let_expire, lifetime, must,
        poll_once, poll_times, refused, release, request,
    },
    process::die_after,
    skewed_clock::SkewedClock,
};

/// The longest time after the deadline at which a loss may be reported on an idle runtime.
const LATEST: Duration = Duration::from_millis(50);
/// The number of tries, of which one has to be in time: a busy machine may be late.
const TRIES: usize = 10;

/// Checks that a lock without renewals is held for its TTL and no longer.
pub async fn expired_lock_is_granted_to_another(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "expired");
    let first = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
    tokio::time::sleep(fixture.ttl().as_duration() / 2).await;
    refused(
        &other,
        request(fixture, &other, &key),
        "half a TTL later it is still held",
    )
    .await;
    tokio::time::sleep(fixture.ttl().as_duration() / 2 + fixture.slack()).await;
    let second = granted(
        &other,
        request(fixture, &other, &key),
        "an expired lock is granted to another",
    )
    .await;
    assert!(
        first.valid_until().is_past(fixture.clock().now()),
        "the first holder's deadline has passed by then"
    );
    release(&second).await;
}

/// Checks that the deadline is counted from before the request or renewal is sent, not from the
/// reply. The case sets the clock ahead while the reply is on its way.
pub async fn deadline_is_counted_from_before_the_request(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "deadline");
    let clock = SkewedClock::new(fixture.clock());
    let drift = one.capabilities().drift;
    let ours = request(fixture, &one, &key).with_clock(clock.clone(), drift);
    let step = fixture.ttl().as_duration() / 4;

    let mut tries = 0..TRIES;
    let (lease, pushed_at) = loop {
        let mut operation = Arc::clone(&one).try_acquire(ours.clone());
        let mut pushed_at = None;
        let outcome = loop {
            if let Some(outcome) = poll_once(&mut operation).await {
                break outcome;
            }
            // When the lock is refused to another client, the request has certainly been sent.
            tokio::time::sleep(SOON / 10).await;
            match attempt(&other, request(fixture, &other, &key)).await {
                Some(lease) => release(&lease).await,
                None => {
                    pushed_at = Some(ours.now());
                    clock.push(step);
                    break operation.await;
                }
            }
        };
        match must(outcome, "an attempt is answered") {
            Attempt::Granted(lease) => break (lease, pushed_at),
            // A probe held the lock at that moment.
            Attempt::Contended(_) => assert!(
                tries.next().is_some(),
                "a lock that only probes asked for was refused"
            ),
        }
    };
    let latest = drift.deadline(pushed_at.unwrap_or_else(|| ours.now()), fixture.ttl());
    assert!(
        lease.valid_until() <= latest,
        "the deadline counts from before the request: {:?}",
        lease.valid_until()
    );

    // The session may be renewing itself at this moment, because it seems older by now. This
    // renewal waits for that one, so that the next renewal does not.
    must(Arc::clone(&lease).renew().await, "a renewal in time renews");
    let mut renewal = Arc::clone(&lease).renew();
    let first = poll_once(&mut renewal).await;
    let pushed_at = ours.now();
    let renewed = match first {
        Some(renewed) => renewed,
        None => {
            tokio::time::sleep(SOON / 10).await;
            clock.push(step);
            renewal.await
        }
    };
    must(renewed, "a renewal in time renews");
    let latest = drift.deadline(pushed_at + SOON, fixture.ttl());
    assert!(
        lease.valid_until() <= latest,
        "a renewed deadline counts from before the renewal"
    );
    release(&lease).await;
}

/// Checks that a guard is lost as soon as its deadline has passed, even if no timer has fired, as
/// after a suspension of the machine.
pub async fn is_held_is_false_past_the_deadline(fixture: &dyn BackendFixture) {
    let clock = SkewedClock::new(fixture.clock());
    let client = client_with(fixture, clock.clone()).await;
    let mutex = client
        .mutex(key(fixture, "is_held"))
        .with_renewal(Renewal::Manual);
    let guard = must(mutex.lock().await, "a free lock is granted");
    assert!(
        guard.is_held() && guard.loss().is_none(),
        "a fresh guard is held"
    );
    clock.push(fixture.ttl().as_duration());
    assert!(!guard.is_held(), "past the deadline nothing is held");
    assert!(guard.remaining().is_zero(), "and no time is left");
    assert_eq!(
        guard.lost().await,
        LossReason::Expired,
        "the loss is reported"
    );
    assert!(guard.renew().await.is_err(), "a lost guard is not renewed");
}

/// Checks that a guard reports its loss at the deadline: not earlier, and at most 50 ms later. On a
/// busy machine some reports are late, so it is enough that one of several is in time.
pub async fn loss_is_reported_at_the_deadline(fixture: &dyn BackendFixture) {
    let client = client_with(fixture, fixture.clock()).await;
    let mut least = Duration::MAX;
    for _ in 0..if fixture.is_time_paused() { 1 } else { TRIES } {
        let mutex = client
            .mutex(key(fixture, "lost"))
            .with_renewal(Renewal::Manual);
        let guard = must(mutex.lock().await, "a free lock is granted");
        let deadline = guard.deadline();
        let loss = tokio::time::timeout(lifetime(fixture), guard.lost()).await;
        assert_eq!(loss, Ok(LossReason::Expired), "the loss is reported");
        let now = fixture.clock().now();
        assert!(
            deadline.is_past(now),
            "a loss is never reported while the lock is held"
        );
        least = least.min(now.since(deadline.moment()));
        if least <= LATEST {
            return;
        }
    }
    panic!("the loss was reported {least:?} after the deadline");
}

/// Checks that `run` cancels work under a lock that is not renewed before another client could get
/// the lock, and fails with [`ErrorKind::Lost`].
pub async fn work_is_cancelled_before_the_deadline(fixture: &dyn BackendFixture) {
    let client = client_with(fixture, fixture.clock()).await;
    let mutex = client
        .mutex(key(fixture, "work"))
        .with_renewal(Renewal::Manual);
    let latest = fixture.clock().now() + fixture.ttl().as_duration();
    let worked = mutex.run(async |_| std::future::pending::<()>().await);
    let Ok(worked) = tokio::time::timeout(lifetime(fixture), worked).await else {
        panic!("the work was not cancelled")
    };
    assert!(
        fixture.clock().now() < latest,
        "the work was cancelled only after another client could have the lock"
    );
    assert_eq!(
        worked.map_err(|error| error.kind()),
        Err(ErrorKind::Lost),
        "cancelled work is reported as lost"
    );
    let done = mutex.run(async |lease| lease.is_held()).await;
    assert_eq!(
        done.map_err(|error| error.kind()),
        Ok(true),
        "work that ends in time is done under the lease"
    );
}

/// Checks that a client whose clock is ahead cannot take a held lock, because no client's clock
/// decides about expiry.
pub async fn skewed_clock_steals_nothing(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "skewed");
    let lease = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
    let clock = SkewedClock::new(fixture.clock());
    clock.push(fixture.ttl().as_duration() * 10);
    let skewed = request(fixture, &other, &key).with_clock(clock, other.capabilities().drift);
    refused(
        &other,
        skewed,
        "a client with its clock ahead is refused like any other",
    )
    .await;
    release(&lease).await;
}

/// Checks that the lock of a holder that disappears without a release is free after its TTL.
pub async fn holder_that_vanishes_frees_after_ttl(fixture: &dyn BackendFixture) {
    let key = key(fixture, "vanishes");
    let other = fixture.open().await;
    {
        let backend = fixture.open().await;
        let lease = granted(
            &backend,
            request(fixture, &backend, &key),
            "a free lock is granted",
        )
        .await;
        drop((lease, backend));
    }
    let within = lifetime(fixture);
    let lease = granted_within(
        fixture,
        &other,
        &key,
        within,
        "the lock of a vanished holder becomes free",
    )
    .await;
    release(&lease).await;
}

/// Checks that a process that crashes at any point of an acquisition leaves no lock for longer than
/// its TTL. The acquisition is polled a number of times, and then the process stops, either at once
/// or when the request has been sent.
pub async fn crash_at_any_point_frees_after_ttl(fixture: &dyn BackendFixture) {
    const POINTS: usize = 8;
    let other = fixture.open().await;
    let mut keys = Vec::new();
    for point in 0..POINTS {
        for lingers in [false, true] {
            let key = key(fixture, "crash");
            keys.push(key.clone());
            die_after(fixture, move || async move {
                let backend = fixture.open().await;
                let mut acquisition =
                    Arc::clone(&backend).try_acquire(request(fixture, &backend, &key));
                let outcome = poll_times(&mut acquisition, point).await;
                if lingers {
                    tokio::time::sleep(SOON / 10).await;
                }
                let granted = outcome.map(|outcome| must(outcome, "an attempt is answered"));
                // Destructors could release the lock, which a crashed process does not do.
                std::mem::forget((granted, acquisition, backend));
            })
            .await;
        }
    }
    let_expire(fixture).await;
    for key in &keys {
        let lease = granted_within(
            fixture,
            &other,
            key,
            SOON,
            "the lock of a crashed process becomes free",
        )
        .await;
        release(&lease).await;
    }
}

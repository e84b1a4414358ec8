//! Waiting for a held lock.

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{at_the_latest, client, granted, key, lifetime, must, must_grant, request},
};

/// Checks that a release notifies the waiter of another client, long before the TTL has passed.
pub async fn waiter_is_notified_without_polling(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "notified");
    // Three quick rounds in a row cannot be the effect of polling once per TTL. A busy machine may
    // be late in some rounds.
    let (mut quick, mut late) = (0, Vec::new());
    while quick < 3 {
        let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
        let mutex = other.mutex(&key);
        let waiter = tokio::spawn(async move { mutex.lock().await });
        tokio::time::sleep(fixture.ttl().as_duration() / 4).await;
        assert!(
            !waiter.is_finished(),
            "a waiter waits while the lock is held"
        );
        let freed = fixture.clock().now();
        must(guard.release().await, "a release is answered");
        let Ok(taken) = waiter.await else {
            panic!("the waiter panicked")
        };
        let took = fixture.clock().now().since(freed);
        if took < fixture.ttl().as_duration() / 4 {
            quick += 1;
        } else {
            (quick, late) = (0, [late, vec![took]].concat());
            let most = if fixture.is_time_paused() { 0 } else { 4 };
            assert!(
                late.len() <= most,
                "the waiter was granted the lock only {late:?} after the release"
            );
        }
        must(
            must(taken, "the waiter is granted").release().await,
            "a release is answered",
        );
    }
}

/// Checks that a waiter is granted the lock of a crashed holder soon after its TTL.
pub async fn waiter_takes_over_after_expiry(fixture: &dyn BackendFixture) {
    let (dead, waiter) = (fixture.open().await, client(fixture).await);
    let key = key(fixture, "takes_over");
    let lease = granted(
        &dead,
        request(fixture, &dead, &key),
        "a free lock is granted",
    )
    .await;
    let guard = waiter.mutex(&key).lock_timeout(lifetime(fixture)).await;
    let guard = must_grant(guard, "a waiter takes over after the expiry");
    assert!(
        lease.valid_until().is_past(fixture.clock().now()),
        "the dead holder's deadline has passed by then"
    );
    must(guard.release().await, "a release is answered");
}

/// Checks that `lock_timeout` ends when its time-out has passed, not earlier and not much later,
/// and holds nothing afterwards.
pub async fn lock_timeout_gives_up_in_time(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "times_out");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    let limit = fixture.ttl().as_duration() / 2;
    let began = tokio::time::Instant::now();
    let waited = other.mutex(&key).lock_timeout(limit).await;
    let took = began.elapsed();
    assert!(
        must(waited, "a time-out is not an error").is_none(),
        "a wait that times out is granted nothing"
    );
    assert!(
        took >= limit && took < at_the_latest(fixture, limit * 2),
        "a wait of {limit:?} took {took:?}"
    );
    must(guard.release().await, "a release is answered");
    let guard = must_grant(
        holder.mutex(&key).lock_timeout(limit).await,
        "a wait that timed out holds nothing",
    );
    must(guard.release().await, "a release is answered");
}

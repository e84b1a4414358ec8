//! Looking at locks, and breaking them.

use std::sync::Arc;

use leasehold_core::{LossDetection, Renewal, Revocation, RevokeOutcome};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{
        SOON, at_the_latest, client, granted, inspected, key, lifetime, must, queued, refused,
        release, request,
    },
};

/// The holder is shown with its label and its token, the waiter is known, and afterwards nobody is
/// left.
pub async fn inspect_shows_holder_and_waiter(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "inspect");
    let seen = must(holder.inspect(&key).await, "an inspection is answered");
    assert!(
        seen.holders.is_empty() && seen.waiters.is_empty(),
        "nobody uses a fresh name: {seen:?}"
    );
    let guard = must(
        holder.mutex(&key).with_label("the holder").lock().await,
        "a free lock is granted",
    );
    let mutex = other.mutex(&key).with_label("the waiter");
    let waiter = tokio::spawn(async move { mutex.lock().await });
    let seen = inspected(&other, &key, |seen| !seen.waiters.is_empty()).await;
    assert_eq!(seen.holders.len(), 1, "there is one holder: {seen:?}");
    assert_eq!(
        seen.holders[0].label, "the holder",
        "the holder's label is shown"
    );
    assert_eq!(seen.holders[0].key, key, "of this key");
    if let Some(token) = seen.holders[0].token {
        assert_eq!(
            Some(token),
            guard.fencing_token(),
            "the token is the holder's"
        );
    }
    assert_eq!(seen.waiters.len(), 1, "there is one waiter: {seen:?}");
    must(guard.release().await, "a release is answered");
    let Ok(taken) = waiter.await else {
        panic!("the waiter panicked")
    };
    let guard = must(taken, "the waiter is granted");
    let seen = inspected(&holder, &key, |seen| seen.waiters.is_empty()).await;
    assert_eq!(
        seen.holders.len(),
        1,
        "the waiter has become the one holder: {seen:?}"
    );
    assert!(seen.waiters.is_empty(), "and waits no longer: {seen:?}");
    must(guard.release().await, "a release is answered");
}

/// A holder whose lock is broken is told: at once, or when it renews, as the capabilities say.
pub async fn loss_is_reported(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "loss");
    let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
    let seen = must(other.inspect(&key).await, "an inspection is answered");
    let Some(shown) = seen.holders.first() else {
        panic!("no holder is shown: {seen:?}")
    };
    let broken = must(
        other.revoke(shown, Revocation::Immediate).await,
        "a break is answered",
    );
    assert_eq!(broken, RevokeOutcome::Freed, "a break `now` frees");
    let within = match holder.capabilities().loss_detection {
        LossDetection::Pushed => fixture.ttl().as_duration() / 10 + SOON / 2,
        _ => fixture.ttl().as_duration() / 2 + SOON / 2,
    };
    let told = tokio::time::timeout(within, guard.lost()).await;
    assert!(told.is_ok(), "the loss was not told within {within:?}");
    assert!(
        !guard.is_held() && guard.loss().is_some(),
        "and the guard agrees"
    );
}

/// A break hits the holder that was shown and nobody who came later.
pub async fn revocation_never_hits_a_newer_holder(fixture: &dyn BackendFixture) {
    let (one, other, third) = (
        fixture.open().await,
        fixture.open().await,
        fixture.open().await,
    );
    let key = key(fixture, "newer");
    let first = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
    let seen = must(third.inspect(&key).await, "an inspection is answered");
    let Some(shown) = seen.holders.first() else {
        panic!("no holder is shown: {seen:?}")
    };
    release(&first).await;
    let second = granted(
        &other,
        request(fixture, &other, &key),
        "a released lock is granted",
    )
    .await;
    for revocation in [Revocation::Graceful, Revocation::Immediate] {
        let broken = must(third.revoke(shown, revocation).await, "a break is answered");
        assert_eq!(
            broken,
            RevokeOutcome::AlreadyGone,
            "the holder that was shown is gone"
        );
        refused(
            &third,
            request(fixture, &third, &key),
            "the newer holder holds on",
        )
        .await;
    }
    must(
        Arc::clone(&second).renew().await,
        "the newer holder renews on",
    );
    release(&second).await;
}

/// A graceful revocation ends the renewals and nothing else: a waiter is not granted the lock while
/// its holder believes in it.
pub async fn graceful_revocation_grants_nobody_early(fixture: &dyn BackendFixture) {
    for renewal in [Renewal::Manual, Renewal::Automatic] {
        let (holder, other, third) = (
            client(fixture).await,
            client(fixture).await,
            client(fixture).await,
        );
        let key = key(fixture, "graceful");
        let guard = must(
            holder.mutex(&key).with_renewal(renewal).lock().await,
            "a free lock is granted",
        );
        let (mutex, held) = (other.mutex(&key), guard.info());
        let waiter = tokio::spawn(async move {
            let granted = mutex.lock().await;
            (granted, held.is_held())
        });
        queued(&other, &key).await;
        let seen = must(third.inspect(&key).await, "an inspection is answered");
        let Some(shown) = seen.holders.first() else {
            panic!("no holder is shown: {seen:?}")
        };
        let broken = must(
            third.revoke(shown, Revocation::Graceful).await,
            "a break is answered",
        );
        // A break that waits for the holder to take note may find that it has ended.
        let keeps_its_time = matches!(broken, RevokeOutcome::FreeWithin(_)) || !guard.is_held();
        assert!(
            keeps_its_time,
            "a graceful break leaves the holder its time: {broken:?}"
        );
        let limit = at_the_latest(fixture, lifetime(fixture) * 2);
        let Ok(Ok((granted, believed))) = tokio::time::timeout(limit, waiter).await else {
            panic!("the waiter was not granted the lock within {limit:?}, {renewal:?}")
        };
        let second = must(granted, "the waiter is granted");
        assert!(
            !believed,
            "the waiter was granted the lock while the holder believed in it, {renewal:?}"
        );
        must(second.release().await, "a release is answered");
    }
}

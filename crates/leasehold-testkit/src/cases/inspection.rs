//! Inspection and revocation.

use std::sync::Arc;

use leasehold_core::{
    ErrorKind, LossDetection, LossReason, Released, Renewal, Revocation, RevokeOutcome,
};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{
        SOON, at_the_latest, client, granted, inspected, key, lifetime, must, queued, refused,
        release, request,
    },
};

/// Checks that an inspection lists the holder with its label and token, and the waiter, and that
/// neither is listed any longer than it holds or waits.
pub async fn inspect_shows_holder_and_waiter(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "inspect");
    let seen = must(holder.inspect(&key).await, "an inspection is answered");
    assert!(
        seen.holders.is_empty() && seen.waiters.is_empty(),
        "a new name has no holder and no waiter: {seen:?}"
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
        "the holder's label is listed"
    );
    assert_eq!(seen.holders[0].key, key, "the holder is of this key");
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
    assert!(
        seen.waiters.is_empty(),
        "a granted waiter waits no longer: {seen:?}"
    );
    must(guard.release().await, "a release is answered");
}

/// Checks that a holder is notified of the revocation of its lock: at once or at the next renewal,
/// as the capabilities declare.
pub async fn loss_is_reported(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "loss");
    let (capabilities, usual) = (holder.capabilities(), fixture.ttl().as_duration());
    // A pushed loss needs no renewal. Without one, a loss that is not pushed ends as an expiry.
    let (renewal, ttl) = match capabilities.loss_detection {
        LossDetection::Pushed => (Renewal::Manual, usual * 8),
        _ => (Renewal::Automatic, usual),
    };
    let mutex = holder.mutex(&key).with_renewal(renewal);
    let mutex = mutex.with_ttl(ttl.min(capabilities.max_ttl.as_duration()));
    let guard = must(mutex.lock().await, "a free lock is granted");
    let seen = must(other.inspect(&key).await, "an inspection is answered");
    let Some(listed) = seen.holders.first() else {
        panic!("no holder is listed: {seen:?}")
    };
    let revoked = must(
        other.revoke(listed, Revocation::Immediate).await,
        "a revocation is answered",
    );
    assert_eq!(
        revoked,
        RevokeOutcome::Freed,
        "an immediate revocation frees the lock"
    );
    let Ok(reason) = tokio::time::timeout(ttl * 2 + SOON * 20, guard.lost()).await else {
        panic!("the loss was not reported")
    };
    assert_ne!(
        reason,
        LossReason::Expired,
        "the loss was not noticed before the deadline"
    );
    assert!(
        !guard.is_held() && guard.loss().is_some(),
        "a lost guard is not held"
    );
}

/// Checks that a revocation affects only the given holder, never a newer one.
pub async fn revocation_never_hits_a_newer_holder(fixture: &dyn BackendFixture) {
    let (one, other, third) = (
        fixture.open().await,
        fixture.open().await,
        fixture.open().await,
    );
    let key = key(fixture, "newer");
    let first = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
    let seen = must(third.inspect(&key).await, "an inspection is answered");
    let Some(listed) = seen.holders.first() else {
        panic!("no holder is listed: {seen:?}")
    };
    release(&first).await;
    let second = granted(
        &other,
        request(fixture, &other, &key),
        "a released lock is granted",
    )
    .await;
    for revocation in [Revocation::Graceful, Revocation::Immediate] {
        let revoked = must(
            third.revoke(listed, revocation).await,
            "a revocation is answered",
        );
        assert_eq!(
            revoked,
            RevokeOutcome::AlreadyGone,
            "the listed holder is gone"
        );
        refused(
            &third,
            request(fixture, &third, &key),
            "the newer holder keeps the lock",
        )
        .await;
    }
    must(
        Arc::clone(&second).renew().await,
        "the newer holder can renew",
    );
    release(&second).await;
}

/// Checks that a graceful revocation only ends the renewals. A waiter is not granted the lock while
/// the holder considers it valid.
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
        let Some(listed) = seen.holders.first() else {
            panic!("no holder is listed: {seen:?}")
        };
        let revoked = must(
            third.revoke(listed, Revocation::Graceful).await,
            "a revocation is answered",
        );
        // A revocation that waits for the holder's confirmation may find that its lock has ended.
        let keeps_its_time = matches!(revoked, RevokeOutcome::FreeWithin(_)) || !guard.is_held();
        assert!(
            keeps_its_time,
            "a graceful revocation ended a lock before its deadline: {revoked:?}"
        );
        let limit = at_the_latest(fixture, lifetime(fixture) * 2);
        let Ok(Ok((granted, still_held))) = tokio::time::timeout(limit, waiter).await else {
            panic!("the waiter was not granted the lock within {limit:?}, {renewal:?}")
        };
        let second = must(granted, "the waiter is granted");
        assert!(
            !still_held,
            "the waiter was granted the lock while the holder considered it valid, {renewal:?}"
        );
        must(second.release().await, "a release is answered");
    }
}

/// Checks that a gracefully revoked holder keeps the lock until its deadline, that its renewals say
/// so, and that it may release the lock before.
pub async fn graceful_revocation_leaves_the_holder_its_time(fixture: &dyn BackendFixture) {
    let (holder, other) = (client(fixture).await, client(fixture).await);
    let key = key(fixture, "its time");
    let limit = at_the_latest(fixture, lifetime(fixture) * 2);
    for releases in [true, false] {
        let guard = must(holder.mutex(&key).lock().await, "a free lock is granted");
        let seen = must(other.inspect(&key).await, "an inspection is answered");
        let Some(listed) = seen.holders.first().cloned() else {
            panic!("no holder is listed: {seen:?}")
        };
        // A revocation may wait until the holder confirms it by a renewal.
        let operator = other.clone();
        let revoking =
            tokio::spawn(async move { operator.revoke(&listed, Revocation::Graceful).await });
        let refused = async {
            loop {
                match guard.renew().await {
                    Err(error) if !error.is_retryable() => return error,
                    _ => tokio::time::sleep(fixture.ttl().as_duration() / 20).await,
                }
            }
        };
        let Ok(refused) = tokio::time::timeout(limit, refused).await else {
            panic!("a revoked lock was renewed for {limit:?}")
        };
        assert_eq!(
            refused.kind(),
            ErrorKind::Revoked,
            "a renewal says that the lock was revoked: {refused}"
        );
        assert!(
            guard.is_held(),
            "a graceful revocation ended the hold: {:?}",
            guard.loss()
        );
        if releases {
            assert_eq!(
                must(guard.release().await, "a release is answered"),
                Released::Freed,
                "a revoked holder may release"
            );
        } else {
            let Ok(reason) = tokio::time::timeout(limit, guard.lost()).await else {
                panic!("a revoked lock was held for {limit:?}")
            };
            assert_eq!(
                reason,
                LossReason::Expired,
                "a revoked lock is lost at its deadline"
            );
        }
        let Ok(revoked) = revoking.await else {
            panic!("the revocation panicked")
        };
        must(revoked, "a revocation is answered");
    }
}

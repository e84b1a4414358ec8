//! Servers that are stopped, killed and restarted.

use std::{error::Error as _, thread};

use leasehold_core::{Clock, Error, ErrorKind, Released, SystemClock};
use leasehold_integration::steps::{is_a_fault, millis, token};

use crate::{
    fixture::Fixture,
    support::{SOON, locked, nothing_left, soon, until_waiting},
};

fn is_an_outage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable | ErrorKind::Indeterminate
    )
}

pub(crate) async fn waits_for_a_stopped_server_fail_and_name_the_cause(fixture: &mut dyn Fixture) {
    let client = fixture.client().await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    fixture.pause();
    // Shorter and longer than the response timeout.
    for limit in [millis(300), millis(5_000)] {
        let waits: Vec<_> = (0..4)
            .map(|_| {
                let mutex = client.mutex("k");
                tokio::spawn(async move { mutex.lock_timeout(limit).await.map(drop) })
            })
            .collect();
        for waiting in waits {
            let error = soon("the wait ends", waiting).await.unwrap().unwrap_err();
            assert!(is_an_outage(&error), "{limit:?}: {error:?}");
            let text = error.to_string();
            // The error of a quorum lists several causes in its message.
            let cause = error.source().is_some()
                || text.contains("did not answer")
                || text.contains("unavailable:");
            assert!(cause, "{limit:?}: {error:?}");
        }
    }
    let tried = soon("the attempt ends", client.mutex("k").try_lock())
        .await
        .unwrap_err();
    assert!(is_an_outage(&tried), "{tried:?}");
    fixture.resume();
}

pub(crate) async fn first_attempt_on_a_stopped_server_is_retried_like_others(
    fixture: &mut dyn Fixture,
) {
    let client = fixture.client().await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    fixture.pause();
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock_timeout(2 * SOON).await });
    // Several response timeouts.
    tokio::time::sleep(millis(9_000)).await;
    assert!(!waiting.is_finished(), "the first fault ended the wait");
    fixture.resume();
    let granted = soon("the waiter is granted", waiting)
        .await
        .unwrap()
        .unwrap();
    granted
        .expect("refused without a holder")
        .release()
        .await
        .unwrap();
    nothing_left(fixture);
}

pub(crate) async fn silent_server_fails_calls_and_holder_by_deadline(fixture: &mut dyn Fixture) {
    fails_calls_and_holder(
        fixture,
        |fixture| fixture.pause(),
        |fixture| fixture.resume(),
    )
    .await;
}

pub(crate) async fn dead_server_fails_calls_and_holder_by_deadline(fixture: &mut dyn Fixture) {
    fails_calls_and_holder(
        fixture,
        |fixture| fixture.kill(),
        |fixture| fixture.restart(),
    )
    .await;
}

async fn fails_calls_and_holder(
    fixture: &mut dyn Fixture,
    strike: impl FnOnce(&mut dyn Fixture),
    heal: impl FnOnce(&mut dyn Fixture),
) {
    let client = fixture.client().await;
    let guard = client.mutex("held").lock().await.unwrap();
    strike(fixture);
    let latest = SystemClock.now() + fixture.ttl().as_duration();
    let (a, b, c) = (client.mutex("a"), client.mutex("b"), client.mutex("c"));
    let (tried, limited, endless, _) = tokio::join!(
        soon("an attempt ends", a.try_lock()),
        soon("a wait with a limit ends", b.lock_timeout(millis(500))),
        soon("a wait ends", c.lock()),
        soon("the holder learns of its loss", guard.lost()),
    );
    for (what, outcome) in [
        ("try_lock", tried),
        ("lock_timeout", limited),
        ("lock", endless.map(Some)),
    ] {
        let error = outcome.expect_err("granted without an answer");
        assert!(is_a_fault(error.kind()), "{what}: {error:?}");
    }
    assert!(!guard.is_held());
    assert!(
        guard.deadline().moment() <= latest,
        "the deadline moved without an answer"
    );
    heal(fixture);
    let again = locked(&client, "held").await;
    assert!(token(&again) > token(&guard));
    again.release().await.unwrap();
    drop(guard);
    nothing_left(fixture);
}

/// Injects a fault while a lock is held and waited for. Every outcome is a typed fault, contention
/// or a grant, tokens increase, later operations succeed, and nothing is left over. Returns whether
/// the holder still held the lock when the waiter was granted it.
async fn strike(fixture: &mut dyn Fixture, how: impl FnOnce(&mut dyn Fixture)) -> bool {
    let (holder, waiter) = (fixture.client().await, fixture.client().await);
    let guard = holder.mutex("k").lock().await.unwrap();
    let (mutex, limit) = (waiter.mutex("k"), 3 * fixture.ttl().as_duration());
    let waiting = tokio::spawn(async move { mutex.lock_timeout(limit).await });
    until_waiting(&holder, 1).await;

    how(fixture);
    let mut two_holders = false;
    let mut largest = token(&guard);
    match soon("the wait ends", waiting)
        .await
        .expect("the waiter panicked")
    {
        Ok(Some(granted)) => {
            two_holders = guard.is_held();
            assert!(
                token(&granted) > largest,
                "{} after {largest}",
                token(&granted)
            );
            largest = token(&granted);
            granted.release().await.unwrap();
        }
        Ok(None) => {}
        Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
    }
    // The release is answered or refused, whatever happened to the lease.
    if let Err(error) = soon("the release ends", guard.release()).await {
        assert!(is_a_fault(error.kind()), "{error:?}");
    }
    for client in [&holder, &waiter] {
        let again = locked(client, "k").await;
        assert!(token(&again) > largest, "{} after {largest}", token(&again));
        largest = token(&again);
        again.release().await.unwrap();
    }
    nothing_left(fixture);
    two_holders
}

pub(crate) async fn a_killed_and_restarted_server_grants_larger_tokens(fixture: &mut dyn Fixture) {
    // A server that has lost the record of a lock may grant it to another holder.
    strike(fixture, |fixture| {
        fixture.kill();
        fixture.restart();
    })
    .await;
}

pub(crate) async fn a_server_that_is_stopped_for_a_while_admits_no_second_holder(
    fixture: &mut dyn Fixture,
) {
    let ttl = fixture.ttl().as_duration();
    for pause in [ttl / 2, ttl * 3 / 2] {
        let two_holders = strike(fixture, |fixture| {
            fixture.pause();
            thread::sleep(pause);
            fixture.resume();
        })
        .await;
        assert!(!two_holders, "two holders after {pause:?}");
    }
}

pub(crate) async fn a_killed_and_restarted_server_keeps_the_lock_and_its_waiter(
    fixture: &mut dyn Fixture,
) {
    let (one, other) = (fixture.client().await, fixture.client().await);
    let guard = one.mutex("k").lock().await.unwrap();
    let mutex = other.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    until_waiting(&one, 1).await;
    fixture.kill();
    fixture.restart();
    let renewed = async {
        while let Err(error) = guard.renew().await {
            assert!(error.is_retryable(), "{error:?}");
            tokio::time::sleep(millis(20)).await;
        }
    };
    soon("the lock is renewed", renewed).await;
    until_waiting(&one, 1).await;
    // Time for a waiter that is wrongly granted.
    tokio::time::sleep(millis(2_000)).await;
    assert!(guard.is_held() && !waiting.is_finished());
    let before = token(&guard);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    let next = soon("the waiter is granted", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(token(&next) > before);
    next.release().await.unwrap();
    nothing_left(fixture);
}

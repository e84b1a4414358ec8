//! The end of a client.

use leasehold_core::{ErrorKind, LossReason, Renewal};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{SOON, client, granted, key, must, release, request},
};

/// `close` releases what is held, sends waiters away and then says *closed*.
pub async fn close_releases_all_and_refuses_later_calls(fixture: &dyn BackendFixture) {
    let (closing, other) = (client(fixture).await, fixture.open().await);
    let keys = [
        key(fixture, "close"),
        key(fixture, "close"),
        key(fixture, "close"),
    ];
    let mut guards = Vec::new();
    for key in &keys {
        guards.push(must(
            closing.mutex(key).lock().await,
            "a free lock is granted",
        ));
    }
    let foreign_key = key(fixture, "close_foreign");
    let foreign = granted(
        &other,
        request(fixture, &other, &foreign_key),
        "a free lock is granted",
    )
    .await;
    let waiters: Vec<_> = [&keys[0], &foreign_key]
        .into_iter()
        .map(|key| {
            let mutex = closing.mutex(key);
            tokio::spawn(async move { mutex.lock().await.map(drop).map_err(|error| error.kind()) })
        })
        .collect();
    tokio::time::sleep(SOON).await;
    must(closing.close().await, "a close is answered");
    for waiter in waiters {
        let Ok(sent_away) = tokio::time::timeout(SOON * 20, waiter).await else {
            panic!("a waiter is not sent away by the close")
        };
        let Ok(sent_away) = sent_away else {
            panic!("a waiter panicked")
        };
        assert_eq!(sent_away, Err(ErrorKind::Closed), "a waiter is sent away");
    }
    for (guard, key) in guards.iter().zip(&keys) {
        assert!(!guard.is_held(), "a guard of a closed client holds nothing");
        assert_eq!(guard.loss(), Some(LossReason::ClientClosed), "and says why");
        let lease = granted(
            &other,
            request(fixture, &other, key),
            "close has released it",
        )
        .await;
        release(&lease).await;
    }
    release(&foreign).await;
    let late = closing
        .mutex(&foreign_key)
        .lock()
        .await
        .map(drop)
        .map_err(|error| error.kind());
    assert_eq!(late, Err(ErrorKind::Closed), "a closed client says so");
    let late = closing
        .mutex(&foreign_key)
        .try_lock()
        .await
        .map(drop)
        .map_err(|error| error.kind());
    assert_eq!(
        late,
        Err(ErrorKind::Closed),
        "a closed client says so to who tries"
    );
    must(closing.close().await, "a second close is answered");
}

/// `drain` sends waiters away and refuses new locks, but leaves holders their locks, and returns
/// when the last is free.
pub async fn drain_refuses_new_locks_and_waits_for_holders(fixture: &dyn BackendFixture) {
    let (draining, other) = (client(fixture).await, fixture.open().await);
    let (held, foreign) = (key(fixture, "drain"), key(fixture, "drain_foreign"));
    let theirs = granted(
        &other,
        request(fixture, &other, &foreign),
        "a free lock is granted",
    )
    .await;
    let guard = must(
        draining
            .mutex(&held)
            .with_renewal(Renewal::Manual)
            .lock()
            .await,
        "a free lock is granted",
    );
    let waiters: Vec<_> = [&held, &foreign]
        .into_iter()
        .map(|key| {
            let mutex = draining.mutex(key);
            tokio::spawn(async move { mutex.lock().await.map(drop).map_err(|error| error.kind()) })
        })
        .collect();
    tokio::time::sleep(SOON).await;
    let mut drained = tokio::spawn({
        let draining = draining.clone();
        async move { draining.drain().await }
    });
    for waiter in waiters {
        let Ok(sent_away) = tokio::time::timeout(SOON * 20, waiter).await else {
            panic!("a waiter is not sent away by the drain")
        };
        let Ok(sent_away) = sent_away else {
            panic!("a waiter panicked")
        };
        assert_eq!(sent_away, Err(ErrorKind::Closed), "a waiter is sent away");
    }
    for wait in [false, true] {
        let mutex = draining.mutex(key(fixture, "drain_late"));
        let late = if wait {
            mutex.lock().await.map(Some)
        } else {
            mutex.try_lock().await
        };
        assert_eq!(
            late.map(drop).map_err(|error| error.kind()),
            Err(ErrorKind::Closed),
            "no new lock is granted"
        );
    }
    must(guard.renew().await, "a holder still renews");
    assert!(guard.is_held(), "a drain takes no lock away");
    assert!(
        tokio::time::timeout(SOON, &mut drained).await.is_err(),
        "a drain waits for the holder"
    );
    must(guard.release().await, "a release is answered");
    let Ok(Ok(())) = tokio::time::timeout(SOON * 20, drained).await else {
        panic!("a drain does not return although nothing is held")
    };
    let lease = granted(
        &other,
        request(fixture, &other, &held),
        "the holder has released it",
    )
    .await;
    release(&lease).await;
    release(&theirs).await;
    must(draining.close().await, "a drained client closes");
}

//! Closing and draining a client.

use leasehold_core::{ErrorKind, LossReason, Renewal};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{SOON, client, granted, key, must, release, request},
};

/// Checks that `close` releases all locks, ends all waits with [`ErrorKind::Closed`], and that
/// later calls fail with it as well.
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
            panic!("close did not end the wait of a waiter")
        };
        let Ok(sent_away) = sent_away else {
            panic!("a waiter panicked")
        };
        assert_eq!(
            sent_away,
            Err(ErrorKind::Closed),
            "close ends the wait of a waiter"
        );
    }
    for (guard, key) in guards.iter().zip(&keys) {
        assert!(!guard.is_held(), "a guard of a closed client holds nothing");
        assert_eq!(
            guard.loss(),
            Some(LossReason::ClientClosed),
            "a guard of a closed client reports why it is lost"
        );
        let lease = granted(
            &other,
            request(fixture, &other, key),
            "close has released the lock",
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
    assert_eq!(
        late,
        Err(ErrorKind::Closed),
        "lock fails on a closed client"
    );
    let late = closing
        .mutex(&foreign_key)
        .try_lock()
        .await
        .map(drop)
        .map_err(|error| error.kind());
    assert_eq!(
        late,
        Err(ErrorKind::Closed),
        "try_lock fails on a closed client"
    );
    must(closing.close().await, "a second close is answered");
}

/// Checks that `drain` ends all waits, refuses new locks, leaves held locks alone, and returns when
/// the last one is released.
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
            panic!("drain did not end the wait of a waiter")
        };
        let Ok(sent_away) = sent_away else {
            panic!("a waiter panicked")
        };
        assert_eq!(
            sent_away,
            Err(ErrorKind::Closed),
            "drain ends the wait of a waiter"
        );
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
        panic!("drain did not return although nothing is held")
    };
    let lease = granted(
        &other,
        request(fixture, &other, &held),
        "the holder has released the lock",
    )
    .await;
    release(&lease).await;
    release(&theirs).await;
    must(draining.close().await, "a drained client closes");
}

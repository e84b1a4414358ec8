//! Draining a client.

mod support;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use leasehold_core::{ErrorKind, LockClient, LossReason, Revocation};
use support::{settle, spied, two_processes};
use tokio::task::JoinHandle;

fn drain(client: &LockClient) -> JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move { client.drain().await })
}

#[tokio::test(start_paused = true)]
async fn drain_refuses_waiters_and_lets_holders_finish() {
    let (client, other) = two_processes();
    let held = client.mutex("held").lock().await.unwrap();
    let theirs = other.mutex("theirs").lock().await.unwrap();
    let wait = |key: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.mutex(key).lock().await.unwrap_err() })
    };
    let waiters = [wait("held"), wait("theirs"), wait("theirs")];
    settle().await;
    let draining = drain(&client);
    for waiter in waiters {
        let error = waiter.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert!(error.to_string().contains("drains"), "{error}");
    }
    assert!(other.inspect("theirs").await.unwrap().waiters.is_empty());
    // This is far longer than the TTL, so the holder's lease must be renewed.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(held.is_held() && !draining.is_finished());
    assert_eq!(
        client.mutex("new").try_lock().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(
        client.rwlock("new").read().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(
        client
            .semaphore("new", 2)
            .acquire()
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Closed
    );
    assert_eq!(client.inspect("held").await.unwrap().holders.len(), 1);
    client.ping().await.unwrap();
    held.release().await.unwrap();
    draining.await.unwrap();
    drop(other.mutex("held").try_lock().await.unwrap().unwrap());
    client.close().await.unwrap();
    drop(theirs);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_holds_nothing_is_drained_at_once() {
    let (client, _other) = two_processes();
    client.drain().await;
    client.drain().await;
    assert_eq!(
        client.mutex("k").lock().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    client.close().await.unwrap();
    client.drain().await;
}

#[tokio::test(start_paused = true)]
async fn dropped_drain_still_refuses_and_can_be_resumed() {
    let (client, _other) = two_processes();
    let held = client.mutex("k").lock().await.unwrap();
    tokio::time::timeout(Duration::from_secs(1), client.drain())
        .await
        .unwrap_err();
    assert_eq!(
        client.mutex("new").lock().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert!(held.is_held());
    let draining = drain(&client);
    settle().await;
    drop(held);
    draining.await.unwrap();
}

/// After the drain, the lock is free, whether it was released in place or in the background.
#[tokio::test(start_paused = true)]
async fn it_waits_until_releases_are_answered() {
    for in_place in [true, false] {
        let (client, watched, _) = spied();
        let held = client.mutex("k").lock().await.unwrap();
        watched.answers_wait.store(true, SeqCst);
        let draining = drain(&client);
        settle().await;
        let releasing = tokio::spawn(async move {
            if in_place {
                held.release().await.unwrap();
            } else {
                drop(held);
            }
        });
        settle().await;
        assert_eq!(watched.releases.load(SeqCst), 1);
        assert!(!draining.is_finished());
        watched.answer.notify_waiters();
        draining.await.unwrap();
        releasing.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lock_and_a_close_end_it() {
    let (client, other) = two_processes();
    let lost = client.mutex("lost").lock().await.unwrap();
    let draining = drain(&client);
    settle().await;
    let holder = other.inspect("lost").await.unwrap().holders.remove(0);
    other.revoke(&holder, Revocation::Immediate).await.unwrap();
    draining.await.unwrap();
    assert!(!lost.is_held());

    let (client, _other) = two_processes();
    let held = client.mutex("k").lock().await.unwrap();
    let draining = drain(&client);
    settle().await;
    client.close().await.unwrap();
    draining.await.unwrap();
    assert_eq!(held.loss(), Some(LossReason::ClientClosed));
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_entered_again_within_its_owner() {
    let (client, _other) = two_processes();
    let owner = client.reentrant_owner();
    let outer = owner.lock("k").await.unwrap();
    let draining = drain(&client);
    settle().await;
    let inner = owner.lock("k").await.unwrap();
    assert_eq!(
        owner.lock("another").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    drop(outer);
    settle().await;
    assert!(inner.is_held() && !draining.is_finished());
    drop(inner);
    draining.await.unwrap();
}

/// A grant that races with the start of the drain is either waited for or released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_held_after_it_however_it_races_with_grants() {
    for _ in 0..200 {
        let backend = std::sync::Arc::new(leasehold_local::MemoryBackend::new());
        let (client, other) = (
            LockClient::new(std::sync::Arc::clone(&backend)),
            LockClient::new(backend),
        );
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..4 {
            let client = client.clone();
            tasks.spawn(async move {
                loop {
                    match client.mutex(format!("key/{n}")).lock().await {
                        Ok(guard) if n % 2 == 0 => drop(guard),
                        Ok(guard) => drop(guard.release().await.unwrap()),
                        Err(error) => {
                            return assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                        }
                    }
                }
            });
        }
        tokio::task::yield_now().await;
        client.drain().await;
        for n in 0..4 {
            drop(
                other
                    .mutex(format!("key/{n}"))
                    .try_lock()
                    .await
                    .unwrap()
                    .expect("it is left locked"),
            );
        }
        tasks.join_all().await;
    }
}

//! Re-entrancy scopes: re-entrant within one, exclusive between two.

mod support;

use std::time::Duration;

use leasehold_core::{LockClient, Released};
use leasehold_local::MemoryBackend;
use support::{secs, settle, simulated};

#[tokio::test(start_paused = true)]
async fn locking_again_is_immediate_and_only_the_last_release_frees() {
    let (client, _) = simulated();
    let owner = client.reentrant_owner();
    let first = owner.lock("a").await.unwrap();
    let second = owner.try_lock("a").await.unwrap().unwrap();
    let third = owner
        .clone()
        .lock_timeout("a", Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.fencing_token(), second.fencing_token());
    assert_eq!(first.release().await.unwrap(), Released::StillHeld);
    drop(third);
    settle().await;
    assert!(client.mutex("a").try_lock().await.unwrap().is_none());
    assert!(second.is_held());
    assert_eq!(second.release().await.unwrap(), Released::Freed);
    drop(client.mutex("a").try_lock().await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn another_owner_of_the_process_waits() {
    let (client, _) = simulated();
    let (one, other) = (client.reentrant_owner(), client.reentrant_owner());
    let guard = one.lock("a").await.unwrap();
    assert!(other.try_lock("a").await.unwrap().is_none());
    let limit = Duration::from_secs(1);
    assert!(other.lock_timeout("a", limit).await.unwrap().is_none());
    drop(guard);
    drop(other.lock("a").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn tasks_of_one_owner_share_one_acquisition() {
    let (client, _) = simulated();
    let outside = client.mutex("a").lock().await.unwrap();
    let owner = client.reentrant_owner();
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let owner = owner.clone();
            tokio::spawn(async move { owner.lock("a").await.unwrap() })
        })
        .collect();
    settle().await;
    drop(outside);
    let mut guards = Vec::new();
    for task in tasks {
        guards.push(task.await.unwrap());
    }
    assert!(
        guards
            .iter()
            .all(|guard| guard.is_held() && guard.fencing_token() == guards[0].fencing_token())
    );
    let last = guards.pop().unwrap();
    drop(guards);
    assert_eq!(last.release().await.unwrap(), Released::Freed);
}

#[tokio::test(start_paused = true)]
async fn holder_reenters_before_queued_tasks_of_its_owner() {
    let (client, _) = simulated();
    let outside = client.mutex("a").lock().await.unwrap();
    let owner = client.reentrant_owner();
    let lock = || {
        let owner = owner.clone();
        async move {
            let guard = owner.lock("a").await.unwrap();
            // The next task in the queue was notified, but has not run yet.
            let tried = owner.try_lock("a").await.unwrap().unwrap();
            let within = owner
                .lock_timeout("a", Duration::ZERO)
                .await
                .unwrap()
                .unwrap();
            assert!(
                [&tried, &within]
                    .iter()
                    .all(|again| again.fencing_token() == guard.fencing_token())
            );
        }
    };
    let tasks: Vec<_> = (0..3).map(|_| tokio::spawn(lock())).collect();
    settle().await;
    drop(outside);
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reentering_tasks_do_not_block_each_other() {
    let client = LockClient::new(MemoryBackend::new());
    let owner = client.reentrant_owner();
    let held = owner.lock("a").await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let owner = owner.clone();
            tokio::spawn(async move {
                for _ in 0..2_000 {
                    drop(owner.try_lock("a").await.unwrap().unwrap());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(held.release().await.unwrap(), Released::Freed);
}

#[tokio::test(start_paused = true)]
async fn first_release_reports_the_loss_of_a_shared_lock() {
    let (client, clock) = simulated();
    let owner = client.reentrant_owner().with_ttl(secs(5));
    let (outer, inner) = (
        owner.lock("a").await.unwrap(),
        owner.lock("a").await.unwrap(),
    );
    clock.suspend(Duration::from_secs(6));
    assert_eq!(inner.release().await.unwrap(), Released::AlreadyLost);
    assert_eq!(outer.release().await.unwrap(), Released::AlreadyLost);
}

#[tokio::test(start_paused = true)]
async fn lost_lock_is_not_reentered() {
    let (client, clock) = simulated();
    let owner = client.reentrant_owner().with_ttl(secs(5));
    let old = owner.lock("a").await.unwrap();
    clock.suspend(Duration::from_secs(6));
    let new = owner.lock("a").await.unwrap();
    assert!(!old.is_held() && new.is_held());
    assert!(new.fencing_token() > old.fencing_token());
    assert_eq!(old.release().await.unwrap(), Released::AlreadyLost);
    assert!(new.is_held());
}

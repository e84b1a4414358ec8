//! Releases in the background: immediate if the backend answers at once, and bounded if it does
//! not.

mod support;

use std::{future::poll_fn, pin::pin, sync::atomic::Ordering::SeqCst, task::Poll, time::Duration};

use futures_util::FutureExt;
use leasehold_core::{ErrorKind, LockClient};
use leasehold_local::MemoryBackend;
use support::{secs, settle, spied};
use tokio::runtime::Handle;

/// If more releases than this run in the background, acquisitions wait.
const BOUND: usize = 1024;

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn dropped_guards_leave_no_task_behind_on_memory() {
    let client = LockClient::new(MemoryBackend::new());
    // This starts the renewal task.
    drop(client.mutex("first").lock().await.unwrap());
    let before = alive_tasks();
    for key in 0..1_000 {
        drop(
            client
                .mutex(format!("key/{}", key % 7))
                .lock()
                .await
                .unwrap(),
        );
        drop(
            client
                .rwlock(format!("key/{}", key % 5))
                .read()
                .await
                .unwrap(),
        );
        drop(client.semaphore("permits", 2).acquire().await.unwrap());
        assert_eq!(alive_tasks(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_acquisitions_leave_no_task_behind_on_memory() {
    let (client, other) = support::two_processes();
    let _held = other.mutex("a").lock().await.unwrap();
    let before = alive_tasks();
    for _ in 0..1_000 {
        let mutex = client.mutex("a");
        {
            let mut locking = pin!(mutex.lock());
            // Polled twice, because the first poll may only use up the task's budget.
            for _ in 0..2 {
                assert!(poll_fn(|cx| Poll::Ready(locking.poll_unpin(cx).is_pending())).await);
            }
        }
        assert_eq!(alive_tasks(), before);
        assert_eq!(client.inspect("a").await.unwrap().waiters.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_that_is_dropped_before_its_answer_locks_nothing() {
    let (client, watched, _) = spied();
    watched.tries_yield.store(10, SeqCst);
    let mutex = client.mutex("a");
    {
        let mut trying = pin!(mutex.try_lock());
        while watched.tries.load(SeqCst) == 0 {
            assert!(poll_fn(|cx| Poll::Ready(trying.poll_unpin(cx).is_pending())).await);
        }
    }
    assert_eq!(client.inspect("a").await.unwrap().holders.len(), 1);
    settle().await;
    assert!(client.inspect("a").await.unwrap().holders.is_empty());
}

/// The release is dropped before it is polled, or while it is under way.
#[tokio::test(start_paused = true)]
async fn dropped_release_continues_in_the_background() {
    for polls in 0..4 {
        let (client, watched, _) = spied();
        let guard = client.mutex("a").lock().await.unwrap();
        watched.releases_yield.store(10, SeqCst);
        {
            let mut releasing = pin!(guard.release());
            for _ in 0..polls {
                let pending = poll_fn(|cx| Poll::Ready(releasing.poll_unpin(cx).is_pending()));
                assert!(pending.await, "it is under way");
            }
        }
        settle().await;
        assert!(
            client.inspect("a").await.unwrap().holders.is_empty(),
            "dropped after {polls} polls"
        );
        assert_eq!(watched.releases.load(SeqCst), 1);
        drop(client.mutex("a").try_lock().await.unwrap().unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_a_dropped_release() {
    let (client, watched, _) = spied();
    let guard = client.mutex("a").lock().await.unwrap();
    watched.answers_wait.store(true, SeqCst);
    {
        let mut releasing = pin!(guard.release());
        assert!(poll_fn(|cx| Poll::Ready(releasing.poll_unpin(cx).is_pending())).await);
    }
    let draining = tokio::spawn({
        let client = client.clone();
        async move { client.drain().await }
    });
    settle().await;
    assert!(!draining.is_finished(), "the release is not answered");
    watched.answer.notify_waiters();
    draining.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_does_not_panic_the_drop_of_a_guard() {
    let (client, watched, _) = spied();
    let guard = client.mutex("a").lock().await.unwrap();
    watched.releases_panic.store(true, SeqCst);
    drop(guard);
    watched.releases_panic.store(false, SeqCst);
    // The local queue is free, but the lock of the backend is not.
    assert!(client.mutex("a").try_lock().await.unwrap().is_none());
    client.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn acquisitions_wait_for_releases_that_pile_up() {
    let (client, watched, _) = spied();
    watched.answers_wait.store(true, SeqCst);
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                for key in 0..BOUND {
                    drop(client.mutex(format!("{task}/{key}")).lock().await.unwrap());
                }
            })
        })
        .collect();
    while watched.acquires.load(SeqCst) < BOUND {
        tokio::task::yield_now().await;
    }
    settle().await;
    let begun = watched.acquires.load(SeqCst);
    assert!((BOUND..BOUND + 4).contains(&begun), "{begun}");
    // This delay counts as waiting: it ends at the caller's limit, and a try is hardly delayed.
    let mutex = client.mutex("a");
    let within = mutex.lock_timeout(Duration::from_millis(100)).await;
    assert_eq!(within.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(mutex.try_lock().await.unwrap().unwrap());
    watched.answers_wait.store(false, SeqCst);
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        watched.answer.notify_waiters();
        tokio::task::yield_now().await;
    }
    assert_eq!(watched.acquires.load(SeqCst), 4 * BOUND);
}

#[tokio::test(start_paused = true)]
async fn a_failed_release_is_retried_until_it_succeeds() {
    for drops in [true, false] {
        let (client, watched, _) = spied();
        let guard = client.mutex("a").with_ttl(secs(10)).lock().await.unwrap();
        watched.releases_fail.store(3, SeqCst);
        if drops {
            drop(guard);
        } else {
            let error = guard.release().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(client.inspect("a").await.unwrap().holders.is_empty());
        assert_eq!(watched.releases.load(SeqCst), 4, "dropped: {drops}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_release_is_retried_with_pauses_until_the_deadline() {
    let (client, watched, _) = spied();
    watched.releases_fail.store(usize::MAX, SeqCst);
    drop(client.mutex("a").with_ttl(secs(10)).lock().await.unwrap());
    tokio::time::sleep(Duration::from_secs(11)).await;
    let releases = watched.releases.load(SeqCst);
    assert!((10..=20).contains(&releases), "{releases} releases");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(watched.releases.load(SeqCst), releases);
}

#[tokio::test(start_paused = true)]
async fn close_retries_a_failed_release_for_two_seconds() {
    let (client, watched, _) = spied();
    let guard = client.mutex("a").with_ttl(secs(60)).lock().await.unwrap();
    watched.releases_fail.store(usize::MAX, SeqCst);
    let begun = tokio::time::Instant::now();
    client.close().await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 2, "in paused time");
    drop(guard);
}

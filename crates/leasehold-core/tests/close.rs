//! Closing a client.

mod support;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Clock, ErrorKind, LockClient, LossReason, SystemClock, Timestamp, backend::LockBackend,
};
use leasehold_local::{FileBackend, MemoryBackend};
use support::{secs, settle, spied, two_processes};
use tokio::{runtime::Handle, task::JoinSet};

#[tokio::test(start_paused = true)]
async fn close_releases_all_and_later_operations_fail() {
    let (client, other) = two_processes();
    let held = client.mutex("held").lock().await.unwrap();
    let theirs = other.mutex("theirs").lock().await.unwrap();
    let wait = |client: &LockClient, key: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.mutex(key).lock().await.unwrap_err().kind() })
    };
    let local = wait(&client, "held");
    let remote = wait(&client, "theirs");
    let behind_remote = wait(&client, "theirs");
    settle().await;

    client.close().await.unwrap();
    assert_eq!(held.loss(), Some(LossReason::ClientClosed));
    drop(other.mutex("held").try_lock().await.unwrap().unwrap());
    for waiter in [local, remote, behind_remote] {
        assert_eq!(waiter.await.unwrap(), ErrorKind::Closed);
    }
    assert_eq!(
        client.mutex("x").lock().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(
        client.mutex("x").try_lock().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(
        client.inspect("x").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    client.close().await.unwrap();
    assert!(other.inspect("theirs").await.unwrap().waiters.is_empty());
    drop((held, theirs));
}

#[test]
fn a_close_on_the_wrong_runtime_is_refused_and_changes_nothing() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, second) = (runtime(), runtime());
    let client = LockClient::new(leasehold_local::MemoryBackend::new());
    let guard = first.block_on(client.mutex("a").lock()).unwrap();
    assert_eq!(
        second.block_on(client.close()).unwrap_err().kind(),
        ErrorKind::WrongRuntime
    );
    assert!(guard.is_held());
    first.block_on(client.close()).unwrap();
    assert!(!guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn dropped_close_continues_in_the_background() {
    let (client, other) = two_processes();
    let held = client.mutex("a").lock().await.unwrap();
    {
        let mut closing = std::pin::pin!(client.close());
        assert!(futures_util::poll!(closing.as_mut()).is_pending());
    }
    settle().await;
    assert_eq!(held.loss(), Some(LossReason::ClientClosed));
    drop(other.mutex("a").try_lock().await.unwrap().unwrap());
    client.close().await.unwrap();
}

/// Locks and drops until the client is closed. Any error other than *Closed* fails the test.
async fn lock_and_drop(client: LockClient, key: usize) {
    loop {
        match client.mutex(format!("key/{key}")).lock().await {
            Ok(guard) => drop(guard),
            Err(error) => return assert_eq!(error.kind(), ErrorKind::Closed, "{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn waiter_behind_its_own_lock_ends_with_closed() {
    let (client, _, _) = spied();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move {
            let _own = client.mutex("a").lock().await.unwrap();
            client.mutex("a").lock().await.unwrap_err().kind()
        }
    });
    settle().await;
    client.close().await.unwrap();
    assert_eq!(waiting.await.expect("it does not panic"), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn waiter_behind_its_own_release_ends_with_closed() {
    let (client, watched, clock) = spied();
    watched.unordered.store(true, SeqCst);
    watched.answers_wait.store(true, SeqCst);
    // The client reads the capabilities once, when it is created.
    let client = LockClient::builder(Arc::clone(client.backend()))
        .with_clock(clock)
        .build();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move {
            drop(client.mutex("a").lock().await.unwrap());
            client.mutex("a").lock().await.unwrap_err().kind()
        }
    });
    settle().await;
    let closing = tokio::spawn({
        let client = client.clone();
        async move { client.close().await }
    });
    assert_eq!(waiting.await.expect("it does not panic"), ErrorKind::Closed);
    closing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn tasks_that_loop_lock_and_drop_end_with_closed_in_paused_time() {
    // Each round closes after a different number of steps, and its releases yield a different
    // number of times.
    for round in 0..90 {
        let (client, watched, clock) = spied();
        watched.unordered.store(round % 2 == 1, SeqCst);
        watched.releases_yield.store(round % 5, SeqCst);
        let client = LockClient::builder(Arc::clone(client.backend()))
            .with_clock(clock)
            .build();
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            // Some tasks share a key and some do not.
            tasks.spawn(lock_and_drop(client.clone(), task % (3 + round % 6)));
        }
        for _ in 0..round / 6 {
            tokio::task::yield_now().await;
        }
        client.close().await.unwrap();
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no task panics, and each outcome is true");
        }
    }
}

/// Runs many short rounds, so that the close meets the tasks in every state.
async fn close_while_tasks_loop(rounds: usize, backend: impl Fn() -> Arc<dyn LockBackend>) {
    for round in 0..rounds {
        let client = LockClient::builder(backend()).with_ttl(secs(30)).build();
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            // Some tasks share a key and some do not.
            tasks.spawn(lock_and_drop(client.clone(), task % (3 + round % 6)));
        }
        for _ in 0..round / 8 {
            tokio::task::yield_now().await;
        }
        client.close().await.unwrap();
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no task panics, and each outcome is true");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_loop_lock_and_drop_end_with_closed_on_memory() {
    close_while_tasks_loop(300, || Arc::new(MemoryBackend::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_loop_lock_and_drop_end_with_closed_on_files() {
    let dir = tempfile::tempdir().unwrap();
    close_while_tasks_loop(50, || Arc::new(FileBackend::open(dir.path()).unwrap())).await;
}

/// A clock that closes a client on another thread at its reading number `at`, and continues once
/// the close has begun.
#[derive(Debug)]
struct ClosingClock {
    client: OnceLock<(LockClient, Handle)>,
    readings: AtomicUsize,
    at: usize,
}

impl Clock for ClosingClock {
    fn now(&self) -> Timestamp {
        if let Some((client, runtime)) = self.client.get()
            && self.readings.fetch_add(1, SeqCst) == self.at
        {
            let (client, runtime) = (client.clone(), runtime.clone());
            let closing = std::thread::spawn(move || runtime.block_on(client.close()));
            // Time for the part of a close that precedes its wait. If it is too short, the test
            // covers less.
            std::thread::sleep(Duration::from_millis(20));
            drop(closing);
        }
        SystemClock.now()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn close_during_a_grant_is_reported_as_closed() {
    for at in 0.. {
        let clock = Arc::new(ClosingClock {
            client: OnceLock::new(),
            readings: AtomicUsize::new(0),
            at,
        });
        let client = LockClient::builder(MemoryBackend::new())
            .with_clock(Arc::clone(&clock) as _)
            .build();
        clock
            .client
            .set((client.clone(), Handle::current()))
            .unwrap();
        let locked = tokio::spawn(async move { client.mutex("a").lock().await.map(drop) })
            .await
            .unwrap();
        if clock.readings.load(SeqCst) <= at {
            assert!(at > 3, "a grant reads the clock: {at}");
            return;
        }
        assert!(
            locked.as_ref().is_ok()
                || locked
                    .as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::Closed),
            "{at}: {locked:?}"
        );
    }
}

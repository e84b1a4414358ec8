//! The queue of waiters within a process, beside the waiters of other processes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use leasehold_core::backend::Attempt;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{SOON, client, key, must, release, request},
};

/// Checks that a client with many waiters yields to the single waiter of another client after at
/// most 50 hand-offs.
pub async fn local_queue_yields_to_other_clients(fixture: &dyn BackendFixture) {
    const TASKS: usize = 40;
    const MOST: u32 = 50;
    let (crowd, one) = (client(fixture).await, fixture.open().await);
    let key = key(fixture, "local_queue");
    let (grants, over) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (mutex, grants, over) = (crowd.mutex(&key), Arc::clone(&grants), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(Ordering::Acquire) {
                    let guard = must(mutex.lock().await, "a waiter of the crowd is granted");
                    grants.fetch_add(1, Ordering::AcqRel);
                    // Paused time advances only when all tasks sleep.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    must(guard.release().await, "a release is answered");
                }
            })
        })
        .collect();
    tokio::time::sleep(SOON).await;
    let mut worst = 0;
    for _ in 0..3 {
        let asks =
            request(fixture, &one, &key).with_waiting(|waiting| waiting.keeps_waiting = true);
        let mut before = None;
        let lease = loop {
            match must(
                Arc::clone(&one).try_acquire(asks.clone()).await,
                "an attempt is answered",
            ) {
                Attempt::Granted(lease) => break lease,
                Attempt::Contended(contention) => {
                    // Counts from the first refusal, when the backend knows the waiter.
                    let before = *before.get_or_insert_with(|| grants.load(Ordering::Acquire));
                    worst = worst.max(grants.load(Ordering::Acquire) - before);
                    if worst > MOST * 10 {
                        over.store(true, Ordering::Release);
                    }
                    // Another case checks notifications; this one polls as a fallback.
                    let poll = tokio::time::sleep(Duration::from_millis(5));
                    match contention.wake {
                        Some(wake) => {
                            drop(futures_util::future::select(wake, Box::pin(poll)).await);
                        }
                        None => poll.await,
                    }
                }
            }
        };
        release(&lease).await;
    }
    over.store(true, Ordering::Release);
    for task in tasks {
        assert!(task.await.is_ok(), "a task of the crowd failed");
    }
    assert!(
        worst <= MOST,
        "a waiter waited for {worst} hand-offs within another client, more than {MOST}"
    );
}

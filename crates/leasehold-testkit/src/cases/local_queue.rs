//! Many tasks of one process beside another process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use leasehold_core::Attempt;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{SOON, client, key, must, release, request},
};

/// A client with many waiters lets another client's one waiter have the lock: it waits for at most
/// fifty hand-offs, however quick they are. Hand-offs are counted, not time.
pub async fn local_queue_yields_to_other_clients(fixture: &dyn BackendFixture) {
    const TASKS: usize = 40;
    const MOST: u32 = 50;
    let (crowd, one) = (client(fixture).await, fixture.open().await);
    let key = key(fixture, "gate");
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
                    // Paused time goes on only when everybody sleeps.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    must(guard.release().await, "a release is answered");
                }
            })
        })
        .collect();
    tokio::time::sleep(SOON).await;
    let mut worst = 0;
    for _ in 0..3 {
        let asks = request(fixture, &one, &key).with_waiting(true);
        let mut before = None;
        let lease = loop {
            match must(
                Arc::clone(&one).try_acquire(asks.clone()).await,
                "an attempt is answered",
            ) {
                Attempt::Granted(lease) => break lease,
                Attempt::Contended(contention) => {
                    // Counted from when it is known to wait.
                    let before = *before.get_or_insert_with(|| grants.load(Ordering::Acquire));
                    worst = worst.max(grants.load(Ordering::Acquire) - before);
                    if worst > MOST * 10 {
                        over.store(true, Ordering::Release);
                    }
                    // Whether it is woken is another case's claim: here a short net is behind it.
                    let net = tokio::time::sleep(Duration::from_millis(5));
                    match contention.wake {
                        Some(wake) => drop(futures_util::future::select(wake, Box::pin(net)).await),
                        None => net.await,
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
        "the one waited for {worst} hand-offs within the other client, more than {MOST}"
    );
}

//! Many waiters.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_integration::server::ZookeeperServer;
use tokio::time::timeout;

use crate::support::{client, free, nothing_left, token, ttl};

const KEYS: usize = 100;
const WAITERS: usize = 10_000;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_waiters_on_a_hundred_keys_are_all_served() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server.url()).await;
    // All tasks wait until every one has started.
    let mut held = Vec::new();
    for key in 0..KEYS {
        held.push(
            client
                .mutex(format!("k{key}"))
                .with_ttl(ttl(10))
                .lock()
                .await
                .unwrap(),
        );
    }
    let taken: Arc<Vec<AtomicBool>> = Arc::new((0..KEYS).map(|_| AtomicBool::new(false)).collect());
    let waiters: Vec<_> = (0..WAITERS)
        .map(|n| {
            let (mutex, taken) = (
                client.mutex(format!("k{}", n % KEYS)).with_ttl(ttl(10)),
                Arc::clone(&taken),
            );
            tokio::spawn(async move {
                let guard = mutex.lock().await.unwrap();
                assert!(
                    !taken[n % KEYS].swap(true, Ordering::SeqCst),
                    "two clients hold the lock"
                );
                let token = token(&guard);
                tokio::task::yield_now().await;
                taken[n % KEYS].store(false, Ordering::SeqCst);
                free(guard).await;
                (n % KEYS, token)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for guard in held {
        free(guard).await;
    }
    let mut tokens: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for waiter in waiters {
        let (key, token) = timeout(PATIENCE, waiter)
            .await
            .expect("a waiter was not granted")
            .unwrap();
        tokens.entry(key).or_default().push(token);
    }
    for (key, mut tokens) in tokens {
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(
            tokens.len(),
            WAITERS / KEYS,
            "key {key}: tokens are repeated"
        );
    }
    nothing_left(&server, PATIENCE);
}

//! The session of the waiters ends before that of the holders.

use std::time::Duration;

use leasehold_core::LockClient;
use leasehold_integration::{held::Held, server::EtcdCluster, steps::SOON};
use tokio::time::timeout;

use crate::support::{client, free, ttl, until_locks};

const HOUR: u64 = 3_600;
const MODES: [&str; 3] = ["writer", "reader", "permit"];

/// Acquires a lock in this mode.
async fn lock(client: &LockClient, mode: &str) -> Held {
    let hour = ttl(HOUR);
    match mode {
        "writer" => client
            .mutex("k")
            .with_ttl(hour)
            .lock()
            .await
            .unwrap()
            .into(),
        "reader" => client
            .rwlock("k")
            .with_ttl(hour)
            .read()
            .await
            .unwrap()
            .into(),
        _ => client
            .semaphore("k", 1)
            .with_ttl(hour)
            .acquire()
            .await
            .unwrap()
            .into(),
    }
}

/// A granted lock belongs to the session with its own TTL. The waiters' session ends a little
/// later.
#[tokio::test(flavor = "multi_thread")]
async fn a_granted_lock_outlives_the_waiters_session() {
    let cluster = EtcdCluster::start().unwrap();
    for mode in MODES {
        let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
        let held = lock(&one, if mode == "permit" { mode } else { "writer" }).await;
        let waiter = tokio::spawn({
            let other = other.clone();
            async move { lock(&other, mode).await }
        });
        until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
        let token = held.fencing_token();
        free(held).await;
        let granted = timeout(SOON, waiter).await.unwrap().unwrap();
        assert!(granted.fencing_token() > token || mode == "permit");
        assert!(
            granted.remaining() > Duration::from_secs(HOUR / 2),
            "{mode}: {:?}",
            granted.remaining()
        );
        // The waiters' session is closed or has expired.
        until_sessions(&cluster, 2).await;
        assert!(granted.is_held());
        let contended = timeout(
            Duration::from_secs(1),
            lock(&one, if mode == "permit" { mode } else { "writer" }),
        );
        assert!(contended.await.is_err(), "{mode}: granted twice");
        free(granted).await;
        one.close().await.unwrap();
        other.close().await.unwrap();
    }
}

async fn until_sessions(cluster: &EtcdCluster, count: usize) {
    let begun = tokio::time::Instant::now();
    while cluster.at(0).keys("%session/").unwrap().len() > count {
        assert!(
            begun.elapsed() < SOON,
            "the waiters' session was not closed"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

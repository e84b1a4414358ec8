//! The session of the waiters ends before that of the holders.

use std::time::Duration;

use leasehold_core::LockClient;
use leasehold_integration::{held::HeldMode, server::EtcdCluster, steps::SOON};
use tokio::time::timeout;

use crate::support::{backend, free, ttl, until_locks};

const HOUR: u64 = 3_600;

/// Connects a client whose locks have a TTL of an hour.
async fn client(url: &str) -> LockClient {
    let backend = backend(url).await;
    LockClient::builder(backend).with_ttl(ttl(HOUR)).build()
}

/// A granted lock belongs to the session with its own TTL. The waiters' session ends a little
/// later.
#[tokio::test(flavor = "multi_thread")]
async fn a_granted_lock_outlives_the_waiters_session() {
    let cluster = EtcdCluster::start().unwrap();
    for mode in [HeldMode::Writer, HeldMode::Reader, HeldMode::Permit] {
        let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
        let held = mode.rival().lock(&one, "k").await.unwrap();
        let waiter = tokio::spawn({
            let other = other.clone();
            async move { mode.lock(&other, "k").await.unwrap() }
        });
        until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
        let token = held.fencing_token();
        free(held).await;
        let granted = timeout(SOON, waiter).await.unwrap().unwrap();
        assert!(granted.fencing_token() > token || mode == HeldMode::Permit);
        assert!(
            granted.remaining() > Duration::from_secs(HOUR / 2),
            "{mode:?}: {:?}",
            granted.remaining()
        );
        // The waiters' session is closed or has expired.
        until_sessions(&cluster, 2).await;
        assert!(granted.is_held());
        let contended = timeout(Duration::from_secs(1), mode.rival().lock(&one, "k"));
        assert!(contended.await.is_err(), "{mode:?}: granted twice");
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

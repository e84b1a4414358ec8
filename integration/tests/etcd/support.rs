//! Helpers shared by the tests.

use std::{sync::Arc, time::Duration};

use leasehold_core::{LockClient, Released, Ttl};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::{held::Held, server::EtcdCluster, steps::SOON};
use tokio::time::{Instant, sleep};

pub(crate) async fn backend(url: &str) -> Arc<EtcdBackend> {
    EtcdBackend::connect(url).await.unwrap()
}

pub(crate) async fn client(url: &str) -> LockClient {
    LockClient::new(backend(url).await)
}

pub(crate) fn ttl(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

pub(crate) async fn free(guard: impl Into<Held>) {
    assert_eq!(guard.into().release().await.unwrap(), Released::Freed);
}

/// Returns the keys of holders and waiters, without those of sessions.
pub(crate) fn locks(cluster: &EtcdCluster) -> Vec<String> {
    let mut keys = cluster.at(0).keys("").unwrap();
    keys.retain(|key| !key.starts_with("%session/"));
    keys
}

/// Waits until the keys of holders and waiters satisfy a condition.
pub(crate) async fn until_locks(
    cluster: &EtcdCluster,
    what: &str,
    are: impl Fn(&[String]) -> bool,
) {
    let begun = Instant::now();
    loop {
        let keys = locks(cluster);
        if are(&keys) {
            return;
        }
        assert!(begun.elapsed() < SOON, "{what}: {keys:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the lease id in a key of `name`.
pub(crate) fn lease_of(key: &str, name: &str) -> String {
    key.strip_prefix(&format!("{name}/"))
        .unwrap()
        .split('-')
        .next()
        .unwrap()
        .to_owned()
}

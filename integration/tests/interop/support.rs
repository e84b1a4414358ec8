//! Helpers shared by the tests.

use std::{sync::Arc, time::Duration};

use leasehold_core::LockClient;
use leasehold_integration::{
    foreign::Foreign,
    server::ZookeeperServer,
    steps::{SOON, millis},
};
use leasehold_zookeeper::ZookeeperBackend;
use tokio::time::{sleep, timeout};

/// The time for which a waiter is observed not to be granted.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);

/// Connects to ZooKeeper, with the root that the other clients have, too.
pub(crate) async fn backend(server: &ZookeeperServer, options: &str) -> Arc<ZookeeperBackend> {
    let url = format!("{}/shop{options}", server.url());
    ZookeeperBackend::connect(&url).await.unwrap()
}

pub(crate) async fn client(server: &ZookeeperServer, options: &str) -> LockClient {
    LockClient::new(backend(server, options).await)
}

/// Waits until this number of clients hold or wait.
pub(crate) async fn queued(server: &ZookeeperServer, count: usize) {
    let there = || {
        let nodes = server.ephemerals().unwrap();
        let nodes = nodes.iter().filter(|node| node.starts_with("/shop/item/"));
        nodes.count()
    };
    let all = async {
        while tokio::task::block_in_place(there) != count {
            sleep(millis(10)).await;
        }
    };
    timeout(SOON, all).await.expect("never queued");
}

/// Asserts that another client that waits is not granted the lock for [`A_WHILE`].
pub(crate) async fn keeps_waiting(foreign: &mut Foreign) {
    let waited = timeout(A_WHILE, foreign.holds()).await;
    assert!(
        waited.is_err(),
        "the other client does not wait: {waited:?}"
    );
}

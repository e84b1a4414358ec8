//! Helpers shared by the tests.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use leasehold_core::{LockClient, LockGuard, Mutex, Released, Ttl};
use leasehold_integration::{
    held::Held,
    leftovers,
    server::ZookeeperServer,
    steps::{connected, is_a_fault, millis},
};
use leasehold_zookeeper::{ZookeeperBackend, zookeeper_client::Client};

/// The timeout of operations that must succeed, long enough for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The parent of the backend's session nodes.
const SESSIONS: &str = "/%sessions/";

/// The mark in the data of a node that is only waiting.
const WAITS: &[u8] = b":waits:";

pub(crate) async fn client(url: &str) -> LockClient {
    let backend = connected(|| ZookeeperBackend::connect(url));
    LockClient::new(backend.await.unwrap())
}

pub(crate) fn ttl(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

pub(crate) async fn free(guard: impl Into<Held>) {
    assert_eq!(guard.into().release().await.unwrap(), Released::Freed);
}

/// Acquires a lock, retrying after each fault.
pub(crate) async fn lock(mutex: &Mutex) -> LockGuard {
    let locked = async {
        loop {
            match mutex.lock().await {
                Ok(guard) => return guard,
                Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
            }
            tokio::time::sleep(millis(20)).await;
        }
    };
    tokio::time::timeout(2 * SOON, locked)
        .await
        .expect("never granted")
}

/// Returns the nodes of all holders and waiters.
pub(crate) fn members(server: &ZookeeperServer) -> BTreeSet<String> {
    let mut nodes = ephemerals(server);
    nodes.retain(|node| !node.starts_with(SESSIONS));
    nodes
}

/// Retries, because the server answers slowly on a busy machine.
fn ephemerals(server: &ZookeeperServer) -> BTreeSet<String> {
    let end = Instant::now() + SOON;
    loop {
        match server.ephemerals() {
            Ok(nodes) => return nodes,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    }
}

/// Returns the nodes of all sessions.
pub(crate) fn sessions(server: &ZookeeperServer) -> BTreeSet<String> {
    let mut nodes = ephemerals(server);
    nodes.retain(|node| node.starts_with(SESSIONS));
    nodes
}

/// Waits until `count` nodes are marked as waiting, and returns them. Only waiters with a TTL of
/// more than 5 s have such nodes.
pub(crate) async fn until_waiting(server: &ZookeeperServer, count: usize) -> BTreeSet<String> {
    let client = Client::connect(&server.addr().to_string()).await.unwrap();
    let end = Instant::now() + SOON;
    loop {
        let mut waiting = BTreeSet::new();
        for node in tokio::task::block_in_place(|| members(server)) {
            // The node may already be gone.
            if let Ok((data, _)) = client.get_data(&node).await
                && data.windows(WAITS.len()).any(|part| part == WAITS)
            {
                waiting.insert(node);
            }
        }
        if waiting.len() == count {
            return waiting;
        }
        assert!(
            Instant::now() < end,
            "not within {SOON:?}: {count} waiters, {waiting:?}"
        );
        tokio::time::sleep(millis(5)).await;
    }
}

/// Waits until there are no holders and waiters, for at most `patience`.
#[track_caller]
pub(crate) fn nothing_left(server: &ZookeeperServer, patience: Duration) {
    let leftovers = || leftovers::nothing_left(patience, || Ok(members(server)));
    tokio::task::block_in_place(leftovers).unwrap();
}

/// Waits until `reached`.
pub(crate) async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !tokio::task::block_in_place(&mut reached) {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        tokio::time::sleep(millis(5)).await;
    }
}

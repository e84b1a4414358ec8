//! Messages larger than the driver's default limit of 4 MiB.

use std::time::Duration;

use leasehold_core::{LockClient, LockGuard, LossReason};
use leasehold_integration::server::EtcdCluster;
use tokio::{task::JoinSet, time::timeout};

use crate::support::{client, free, ttl};

const LOCKS: usize = 10_000;
const READERS: usize = 2_000;
/// The timeout for listing so many keys every third renewal on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// A quarter of the TTL is the timeout of each request.
const TTL_S: u64 = 24;

fn name(n: usize) -> String {
    format!("{n:0>400}")
}

async fn all_held(client: &LockClient) -> Vec<LockGuard> {
    let mut granted = JoinSet::new();
    for n in 0..LOCKS {
        let mutex = client.mutex(name(n)).with_ttl(ttl(TTL_S));
        granted.spawn(async move { (n, mutex.lock().await.unwrap()) });
    }
    let mut guards = granted.join_all().await;
    guards.sort_by_key(|(n, _)| *n);
    guards.into_iter().map(|(_, guard)| guard).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_among_ten_thousand_long_names_is_reported() {
    let cluster = EtcdCluster::builder().in_memory().start().unwrap();
    let holder = client(&format!("{}?timeout=60s", cluster.url())).await;
    let guards = all_held(&holder).await;
    for n in [0, LOCKS / 2, LOCKS - 1] {
        cluster
            .at(0)
            .ctl(&["del", "--prefix", &format!("{}/", name(n))])
            .unwrap();
        let told = timeout(PATIENCE, guards[n].lost()).await;
        assert_eq!(
            told.expect("the loss was not reported"),
            LossReason::Replaced
        );
    }
    assert_eq!(
        guards.iter().filter(|guard| guard.is_held()).count(),
        LOCKS - 3
    );
    holder.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_more_than_4_mib_can_be_inspected() {
    let cluster = EtcdCluster::builder().in_memory().start().unwrap();
    let readers = client(&format!("{}?timeout=60s", cluster.url())).await;
    // Each byte becomes three on the server.
    let name = "/".repeat(1024);
    let mut granted = JoinSet::new();
    for _ in 0..READERS {
        let lock = readers.rwlock(name.as_str()).with_ttl(ttl(120));
        granted.spawn(async move { lock.read().await.unwrap() });
    }
    let guards = granted.join_all().await;
    let inspection = readers.inspect(name.as_str()).await.unwrap();
    assert_eq!(
        (inspection.holders.len(), inspection.waiters.len()),
        (READERS, 0)
    );
    for guard in guards {
        free(guard).await;
    }
}

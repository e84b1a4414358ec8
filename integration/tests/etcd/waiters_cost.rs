//! The cost of ten thousand waiters in one process.

use std::{fs, time::Duration};

use leasehold_integration::{
    peer::{self, Peer, listen, tell},
    server::EtcdCluster,
};
use tokio::{task::JoinSet, time::timeout};

use crate::support::{client, locks, until_locks};

const KEYS: usize = 100;
const WAITERS: usize = 10_000;
/// The memory of a waiter: its task, its place in the local queue, and its request. About 3 KB in
/// an unoptimized build.
const BYTES: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(180);

/// Returns the resident memory of this process in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * rustix::param::page_size()
}

/// The waiters run in a process of their own, so that its memory is only theirs.
async fn wait_in_crowds(url: &str) {
    let one = client(url).await;
    drop(one.mutex("warm").lock().await.unwrap());
    let before = resident();
    let mut waiters = JoinSet::new();
    for n in 0..WAITERS {
        let mutex = one.mutex(format!("k{}", n % KEYS));
        waiters.spawn(async move { drop(mutex.lock().await.unwrap()) });
    }
    tell("waiting");
    assert_eq!(
        tokio::task::spawn_blocking(listen)
            .await
            .unwrap()
            .as_deref(),
        Some("all queue")
    );
    tell(resident().saturating_sub(before));
    let mut served = 0;
    while let Some(done) = waiters.join_next().await {
        done.unwrap();
        served += 1;
    }
    one.close().await.unwrap();
    tell(served);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_waiters_need_three_streams_and_few_kilobytes() {
    if let Some(url) = peer::role() {
        return wait_in_crowds(&url).await;
    }
    let cluster = EtcdCluster::start().unwrap();
    let holder = client(&cluster.url()).await;
    let mut held = Vec::new();
    for key in 0..KEYS {
        held.push(holder.mutex(format!("k{key}")).lock().await.unwrap());
    }
    let test = "waiters_cost::ten_thousand_waiters_need_three_streams_and_few_kilobytes";
    let mut crowd = Peer::this_test(test, &cluster.url()).unwrap();
    assert_eq!(crowd.hear(PATIENCE).unwrap(), "waiting");
    // One waiter per key contends on the server.
    until_locks(&cluster, "holders and first waiters", |keys| {
        keys.len() == 2 * KEYS
    })
    .await;
    let metrics = cluster.at(0).metrics().unwrap();
    let value = |name: &str| {
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
            .unwrap_or(f64::NAN)
    };
    let (streams, watchers) = (
        value("etcd_debugging_mvcc_watch_stream_total "),
        value("etcd_debugging_mvcc_watcher_total "),
    );
    assert!(
        streams <= 3.0 && watchers <= KEYS as f64 + 10.0,
        "{streams} streams with {watchers} watches"
    );
    crowd.say("all queue").unwrap();
    let bytes: usize = crowd.hear(PATIENCE).unwrap().parse().unwrap();
    eprintln!(
        "{WAITERS} waiters: {} bytes each, {streams} streams, {watchers} watches",
        bytes / WAITERS
    );
    assert!(
        bytes < WAITERS * BYTES,
        "{} bytes for each waiter",
        bytes / WAITERS
    );
    drop(held);
    let served = timeout(
        PATIENCE,
        tokio::task::spawn_blocking(move || crowd.hear(PATIENCE)),
    )
    .await
    .unwrap()
    .unwrap();
    assert_eq!(served.unwrap(), WAITERS.to_string());
    until_locks(&cluster, "nobody", <[String]>::is_empty).await;
    assert_eq!(locks(&cluster), [""; 0]);
}

//! Acquire and release on distinct keys, beside the raw driver doing Go's Mutex sequence on one shared lease, in interleaved
//! rounds. `cargo run --release -p leasehold-etcd --example pair -- etcd://127.0.0.1:2379/ [SECONDS] [TASKS]…`

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use leasehold_core::LockClient;
use leasehold_etcd::{
    EtcdBackend,
    etcd_client::{
        Client, Compare, CompareOp, ConnectOptions, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    },
};

const ROUNDS: usize = 4;

#[tokio::main]
async fn main() {
    let url = env::args().nth(1).unwrap_or_else(|| "etcd://127.0.0.1:2379/".into());
    let seconds: f64 = env::args().nth(2).and_then(|secs| secs.parse().ok()).unwrap_or(1.0);
    let locks = LockClient::new(EtcdBackend::connect(&url).await.unwrap());
    let endpoint = url.trim_start_matches("etcd://").trim_end_matches('/').split(',').next().unwrap().to_owned();
    let raw = Client::connect([endpoint], Some(ConnectOptions::new().with_require_leader(std::env::var("RL").is_ok())))
        .await
        .unwrap();
    let lease = raw.lease_client().grant(600, None).await.unwrap().id();
    println!("{:>6} {:>10} {:>10} {:>7}", "tasks", "ours/s", "raw/s", "ratio");
    let tasks: Vec<usize> = env::args().skip(3).filter_map(|tasks| tasks.parse().ok()).collect();
    for tasks in if tasks.is_empty() { vec![1, 16, 64, 256] } else { tasks } {
        let (mut ours, mut floor) = (0.0, 0.0);
        for round in 0..=ROUNDS {
            let time = Duration::from_secs_f64(seconds);
            let a = run(tasks, time, |task| {
                let locks = locks.clone();
                move || {
                    let mutex = locks.mutex(format!("pair/{task}"));
                    async move { assert!(mutex.lock().await.unwrap().release().await.is_ok()) }
                }
            })
            .await;
            let b = run(tasks, time, |task| {
                let raw = raw.kv_client();
                move || pair(raw.clone(), lease, task)
            })
            .await;
            // The first warms up.
            if round > 0 {
                (ours, floor) = (ours + a, floor + b);
            }
        }
        let rounds = ROUNDS as f64;
        println!("{tasks:>6} {:>10.0} {:>10.0} {:>7.2}", ours / rounds, floor / rounds, ours / floor);
    }
    locks.close().await.unwrap();
}

/// As Go's `concurrency.Mutex` does: put if absent with the first of the queue; delete.
async fn pair(mut raw: leasehold_etcd::etcd_client::KvClient, lease: i64, task: usize) {
    let (directory, key) = (format!("raw{task}/"), format!("raw{task}/{lease:x}-{task}"));
    let first = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
    let txn = Txn::new()
        .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
        .and_then([
            TxnOp::put(key.clone(), "", Some(PutOptions::new().with_lease(lease))),
            TxnOp::get(directory.clone(), Some(first.clone())),
        ])
        .or_else([TxnOp::get(key.clone(), None), TxnOp::get(directory, Some(first))]);
    assert!(raw.txn(txn).await.unwrap().succeeded());
    raw.delete(key, None).await.unwrap();
}

/// Pairs per second.
async fn run<F, Fut>(tasks: usize, time: Duration, make: impl Fn(usize) -> F) -> f64
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|task| {
            let (mut once, stop) = (make(task), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut count = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    once().await;
                    count += 1;
                }
                count
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut count = 0;
    for task in running {
        count += task.await.unwrap();
    }
    count as f64 / begun.elapsed().as_secs_f64()
}

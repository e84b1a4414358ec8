//! How long after a release began a waiter of another client has the lock, beside the raw driver with a warm watch, in interleaved rounds.
//! `cargo run --release -p leasehold-etcd --example handoff -- etcd://127.0.0.1:2379/ [ROUNDS] [WRITES PER SECOND]`

use std::{
    env,
    time::{Duration, Instant},
};

use leasehold_core::LockClient;
use leasehold_etcd::{
    EtcdBackend,
    etcd_client::{Client, EventType, GetOptions, PutOptions, SortOrder, SortTarget, WatchOptions},
};

#[tokio::main]
async fn main() {
    let url = env::args().nth(1).unwrap_or_else(|| "etcd://127.0.0.1:2379/".into());
    let number = |at, default| env::args().nth(at).and_then(|number| number.parse().ok()).unwrap_or(default);
    let (rounds, writes): (usize, u64) = (number(2, 500) as usize, number(3, 0));
    let endpoint = url.trim_start_matches("etcd://").trim_end_matches('/').split(',').next().unwrap().to_owned();
    let connect = || async { Client::connect([&endpoint], None).await.unwrap() };
    if writes > 0 {
        let mut writer = connect().await;
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / writes));
            loop {
                tick.tick().await;
                writer.put("unrelated", "x", None).await.unwrap();
            }
        });
    }
    let one = LockClient::new(EtcdBackend::connect(&url).await.unwrap());
    let other = LockClient::new(EtcdBackend::connect(&url).await.unwrap());
    let (mut holder, mut waiter) = (connect().await, connect().await);
    let mut watch = waiter.watch("raw/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(watch.message().await.unwrap().unwrap().created());
    let lease = holder.lease_grant(600, None).await.unwrap().id();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..rounds + 5 {
        let guard = one.mutex("handoff").lock().await.unwrap();
        let waiting = tokio::spawn({
            let other = other.clone();
            async move { (other.mutex("handoff").lock().await.unwrap(), Instant::now()) }
        });
        tokio::time::sleep(Duration::from_millis(8)).await;
        let begun = Instant::now();
        assert!(guard.release().await.is_ok());
        let (guard, granted) = waiting.await.unwrap();
        assert!(guard.release().await.is_ok());

        // The floor: delete, the event, a linearizable range with our key first.
        holder.put("raw/a", "", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        waiter.put("raw/b", "", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(8)).await;
        let raw_begun = Instant::now();
        let deleted = tokio::spawn({
            let mut holder = holder.clone();
            async move { holder.delete("raw/a", None).await.unwrap() }
        });
        'gone: loop {
            for event in watch.message().await.unwrap().unwrap().events() {
                if event.event_type() == EventType::Delete && event.kv().unwrap().key() == b"raw/a" {
                    break 'gone;
                }
            }
        }
        let first = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
        let read = waiter.get("raw/", Some(first)).await.unwrap();
        assert_eq!(read.kvs()[0].key(), b"raw/b");
        let raw = raw_begun.elapsed();
        deleted.await.unwrap();
        waiter.delete("raw/b", None).await.unwrap();
        // The first ones warm up.
        if round >= 5 {
            ours.push(granted - begun);
            floor.push(raw);
        }
    }
    for (name, mut taken) in [("ours", ours), ("raw", floor)] {
        taken.sort_unstable();
        println!(
            "{name:>5}: p50 {:?}, p99 {:?}, max {:?}",
            taken[rounds / 2],
            taken[rounds * 99 / 100],
            taken[rounds - 1]
        );
    }
    one.close().await.unwrap();
    other.close().await.unwrap();
}

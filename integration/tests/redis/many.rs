use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use leasehold_core::{LockGuard, Released};
use leasehold_integration::{
    panics::nothing_panicked,
    proxy::{Direction, Proxy},
    server::RedisServer,
    steps::{client_of, millis},
};
use tokio::task::JoinSet;

use crate::support::nothing_left;

/// The time for all renewals, a third of which passes before they begin. It is far more than they
/// need if many are sent at once, and far less than if one is sent after the other has come back.
const TTL: u64 = 30_000;

/// Gives the server of a busy machine time to answer.
const PATIENTLY: &str = "?timeout=20s&connect-timeout=20s";

/// Waits until all leases have been renewed twice. None may be lost meanwhile.
async fn renewed_twice(guards: &[LockGuard]) {
    for _ in 0..2 {
        let deadlines = || guards.iter().map(|guard| guard.deadline().moment());
        let before: Vec<_> = deadlines().collect();
        while deadlines().zip(&before).any(|(now, before)| now <= *before) {
            let lost = guards.iter().filter(|guard| !guard.is_held()).count();
            assert_eq!(lost, 0, "lost locks of {}", guards.len());
            tokio::time::sleep(millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_leases_are_renewed_and_none_is_lost() {
    let server = RedisServer::start().unwrap();
    let client = client_of(&(server.url() + PATIENTLY), TTL).await;
    let locking = stream::iter(0..10_000).map(|n| {
        let mutex = client.mutex(format!("k{n}"));
        async move { mutex.lock().await.unwrap() }
    });
    let guards: Vec<LockGuard> = locking.buffer_unordered(256).collect().await;
    renewed_twice(&guards).await;
    let releasing = stream::iter(guards)
        .map(LockGuard::release)
        .buffer_unordered(256);
    let truths: Vec<_> = releasing.collect().await;
    assert!(
        truths
            .iter()
            .all(|truth| matches!(truth, Ok(Released::Freed)))
    );
    nothing_left(&server, millis(TTL / 2));
    nothing_panicked();
}

/// More renewals than are sent in one round trip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_thousand_locks_50_ms_away_lose_none() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_of(&(server.url_at(proxy.addr()) + PATIENTLY), TTL).await;
    proxy.delay(Direction::Both, millis(25));
    let locking = stream::iter(0..8000).map(|n| {
        let mutex = client.mutex(format!("k{n}"));
        async move { mutex.lock().await.unwrap() }
    });
    let guards: Vec<LockGuard> = locking.buffer_unordered(256).collect().await;
    renewed_twice(&guards).await;
    client.close().await.unwrap();
    nothing_left(&server, millis(TTL / 2));
    nothing_panicked();
}

/// Nothing is renewed more than once in 6 s.
const WAITERS_TTL: u64 = 30_000;

/// Returns the number of calls by command, without the harness's own.
fn calls(server: &RedisServer) -> BTreeMap<String, u64> {
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query(&mut server.connection().unwrap())
        .unwrap();
    let stats = stats.lines().filter_map(|line| {
        let (command, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((command.to_owned(), rest.split_once(',')?.0.parse().ok()?))
    });
    stats
        .filter(|(command, _)| !command.starts_with("info") && !command.starts_with("client"))
        .collect()
}

/// Returns the cost of `waiters` in one process: commands per hand-off, and commands while they
/// only wait.
async fn cost(waiters: usize) -> (f64, u64) {
    let server = RedisServer::start().unwrap();
    let (client, rival) = (
        client_of(&(server.url() + PATIENTLY), WAITERS_TTL).await,
        client_of(&(server.url() + PATIENTLY), WAITERS_TTL).await,
    );
    let guard = rival.mutex("k").lock().await.unwrap();
    let mut crowd = JoinSet::new();
    for _ in 0..waiters {
        let mutex = client.mutex("k");
        crowd.spawn(async move { mutex.lock().await.unwrap().release().await.unwrap() });
    }
    let total = || calls(&server).values().sum::<u64>();
    tokio::time::sleep(millis(300)).await;
    let begun = total();
    tokio::time::sleep(millis(1000)).await;
    let waited = total();
    guard.release().await.unwrap();
    while let Some(released) = crowd.join_next().await {
        released.unwrap();
    }
    let handed = total();
    println!("{waiters} waiters: {:?}", calls(&server));
    nothing_left(&server, millis(WAITERS_TTL / 2));
    ((handed - waited) as f64 / waiters as f64, waited - begun)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_off_cost_does_not_depend_on_number_of_waiters() {
    let ((few, few_waiting), (many, many_waiting)) = (cost(10).await, cost(1000).await);
    println!("commands per hand-off: {few:.2} with 10 waiters, {many:.2} with 1 000");
    assert!(many <= few + 1.0, "{few} with 10 waiters, {many} with 1000");
    // Waiters are notified and do not poll. The holder renews at most once in 6 s.
    assert!(
        few_waiting <= 6 && many_waiting <= 6,
        "{few_waiting} and {many_waiting} commands in 1 s of waiting"
    );
    nothing_panicked();
}

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

const LEASES: usize = 10_000;
const TTL: u64 = 8000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_leases_are_renewed_and_none_is_lost() {
    let server = RedisServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let locking = stream::iter(0..LEASES).map(|n| {
        let mutex = client.mutex(format!("k{n}"));
        async move { mutex.lock().await.unwrap() }
    });
    let guards: Vec<LockGuard> = locking.buffer_unordered(256).collect().await;
    for _ in 0..20 {
        tokio::time::sleep(millis(TTL / 8)).await;
        let lost = guards.iter().filter(|guard| !guard.is_held()).count();
        assert_eq!(lost, 0, "lost locks of {LEASES}");
    }
    let releasing = stream::iter(guards)
        .map(LockGuard::release)
        .buffer_unordered(256);
    let truths: Vec<_> = releasing.collect().await;
    assert!(
        truths
            .iter()
            .all(|truth| matches!(truth, Ok(Released::Freed)))
    );
    nothing_left(&server, millis(2000));
    nothing_panicked();
}

/// More renewals than are sent in one round trip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_thousand_locks_50_ms_away_lose_none() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_of(&server.url_at(proxy.addr()), 5000).await;
    proxy.delay(Direction::Both, millis(25));
    let locking = stream::iter(0..8000).map(|n| {
        let mutex = client.mutex(format!("k{n}"));
        async move { mutex.lock().await.unwrap() }
    });
    let guards: Vec<LockGuard> = locking.buffer_unordered(256).collect().await;
    for _ in 0..20 {
        tokio::time::sleep(millis(1000)).await;
        let held = guards.iter().filter(|guard| guard.is_held()).count();
        assert_eq!(held, guards.len());
    }
    client.close().await.unwrap();
    nothing_left(&server, millis(2000));
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
        client_of(&server.url(), WAITERS_TTL).await,
        client_of(&server.url(), WAITERS_TTL).await,
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
    nothing_left(&server, millis(1000));
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

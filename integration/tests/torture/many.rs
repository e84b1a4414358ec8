use futures_util::{StreamExt, stream};
use leasehold_core::{LockGuard, Released};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::RedisServer,
};

use crate::support::{client_of, millis, nothing_left, nothing_panicked};

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

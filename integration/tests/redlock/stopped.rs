use std::time::{Duration, Instant};

use leasehold_core::{ErrorKind, LockClient, Released};
use leasehold_integration::{proxy::Direction, server::Persistence};
use tokio::task::block_in_place;

use crate::support::{
    PATIENT, client, client_at, five, millis, nothing_left, token, ttl, url_through, ways,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_paused_servers_delay_nobody_and_are_left_clean() {
    let mut servers = five(Persistence::None).await;
    // Requests to paused servers stay pending until the end of the test.
    let client = client(&servers, "?node-timeout=60s&timeout=60s").await;
    for server in &mut servers.servers[3..] {
        server.pause().unwrap();
    }
    let began = Instant::now();
    let mut last = 0;
    for _ in 0..20 {
        let guard = client.mutex("k").lock().await.unwrap();
        assert!(token(&guard) > last);
        last = token(&guard);
        guard.renew().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    assert!(
        began.elapsed() < Duration::from_secs(50),
        "a paused server delayed an acquisition"
    );
    for server in &mut servers.servers[3..] {
        server.resume().unwrap();
    }
    block_in_place(|| nothing_left(&servers.servers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_stopped_servers_fail_in_time_and_are_released() {
    let mut servers = five(Persistence::None).await;
    let client = client(&servers, "?node-timeout=500ms&timeout=1s").await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    for server in &mut servers.servers[..3] {
        server.pause().unwrap();
    }
    let error = client.mutex("k").try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("3 of 5 unavailable: "),
        "{error}"
    );
    block_in_place(|| nothing_left(&servers.servers[3..]));
    for server in &mut servers.servers[..3] {
        server.resume().unwrap();
    }
    // Servers that received the request but could not answer also release the lock.
    block_in_place(|| nothing_left(&servers.servers));
    let guard = crate::support::eventually(&client, "k").await;
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_slow_servers_neither_shorten_nor_prolong_the_lease() {
    const TTL: Duration = Duration::from_secs(4);
    let servers = five(Persistence::None).await;
    let ways = ways(&servers);
    let backend = leasehold::backend::connect(&url_through(&ways, "?node-timeout=30s&timeout=30s"))
        .await
        .unwrap();
    let client = LockClient::builder(backend).with_ttl(ttl(TTL)).build();
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    for way in &ways[3..] {
        way.delay(Direction::ClientToServer, TTL + millis(1_000));
    }
    let guard = client.mutex("k").lock().await.unwrap();
    assert!(guard.is_held() && guard.remaining() < TTL);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    // Grants that arrive late are undone when they arrive.
    tokio::time::sleep(TTL + millis(1_500)).await;
    block_in_place(|| nothing_left(&servers.servers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_grant_is_adopted_while_the_lock_is_held() {
    let servers = five(Persistence::None).await;
    let ways = ways(&servers);
    let client = client_at(&url_through(&ways, PATIENT)).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    for way in &ways[..2] {
        way.hold(Direction::ClientToServer);
    }
    let guard = client.mutex("k").lock().await.unwrap();
    for way in &ways[..2] {
        way.heal();
    }
    let held = || {
        servers
            .servers
            .iter()
            .filter(|server| crate::support::value(server, "k").is_some())
            .count()
    };
    block_in_place(|| crate::support::until("all five hold", || held() == 5));
    // The lock survives the loss of two other servers.
    for way in &ways[3..] {
        way.cut();
    }
    let renewed = async {
        while guard.renew().await.is_err() {
            tokio::time::sleep(millis(20)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, renewed)
        .await
        .unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    block_in_place(|| nothing_left(&servers.servers[..3]));
}

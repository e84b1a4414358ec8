//! A server that fails.

use std::time::Duration;

use leasehold_core::{Clock, ErrorKind, LossReason, Released, SystemClock};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::EtcdCluster;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{SOON, client, ttl};

#[tokio::test(flavor = "multi_thread")]
async fn stopped_server_fails_in_time_and_holder_loses_by_deadline() {
    let mut cluster = EtcdCluster::start().unwrap();
    let client = client(&cluster.url()).await;
    let guard = client.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    cluster.member(0).pause().unwrap();
    let latest = SystemClock.now() + Duration::from_secs(3);
    let begun = Instant::now();
    let error = client
        .mutex("other")
        .with_ttl(ttl(3))
        .try_lock()
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(
        timeout(SOON, guard.lost()).await.unwrap(),
        LossReason::Expired
    );
    assert!(
        guard.deadline().moment() <= latest,
        "the deadline moved without an answer"
    );
    cluster.member(0).resume().unwrap();
    let next = timeout(SOON, client.mutex("k").with_ttl(ttl(3)).lock())
        .await
        .unwrap()
        .unwrap();
    assert!(next.fencing_token() > guard.fencing_token());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_restarted_server_keeps_the_lock_and_its_waiter() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(6)).lock().await.unwrap() }
    });
    sleep(Duration::from_millis(300)).await;
    cluster.member(0).kill();
    sleep(Duration::from_millis(500)).await;
    cluster.member(0).restart().unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    let token = guard.fencing_token();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(next.fencing_token() > token);
}

/// Connects to an address without etcd and returns the error message.
async fn refused(url: &str) -> String {
    let error = EtcdBackend::connect(url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let told = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        let says = cause.to_string();
        assert!(!says.contains("Error") && !says.contains('{'), "{says}");
        next = cause.source();
    }
    for noise in ["http", "Error", "{"] {
        assert!(!told.contains(noise), "{noise}: {told}");
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_a_remedy() {
    let told = refused("etcd://127.0.0.1:1/").await;
    assert!(
        told.contains("etcd://127.0.0.1:1 (") && told.contains("onnection refused"),
        "{told}"
    );
    assert_eq!(told.matches("efused").count(), 1, "{told}");
    let told = refused("etcd://nowhere.invalid:1/").await;
    assert!(
        told.contains("nowhere.invalid:1") && told.contains("check the address"),
        "{told}"
    );
    // A port that answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let told = refused(&format!(
        "etcd://{}/?timeout=200ms",
        silent.local_addr().unwrap()
    ))
    .await;
    assert!(
        told.contains("200ms") && told.contains("`timeout`"),
        "{told}"
    );
}

/// Each kind of server answers a request that it does not understand with its own message, or not
/// at all.
#[cfg(all(feature = "postgres", feature = "redis", feature = "zookeeper"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_etcd_is_reported() {
    use leasehold_integration::server::{PostgresServer, RedisServer, ZookeeperServer};
    let (redis, postgres) = (
        RedisServer::start().unwrap(),
        PostgresServer::start().unwrap(),
    );
    let zookeeper = ZookeeperServer::start().unwrap();
    for addr in [redis.addr(), postgres.addr(), zookeeper.addr()] {
        let told = refused(&format!("etcd://{addr}/")).await;
        assert!(
            told.contains("Is it an etcd server") && told.contains(&addr.to_string()),
            "{told}"
        );
    }
}

//! Three members, some of which fail.

use std::time::Duration;

use leasehold_core::{ErrorKind, LockClient, Released};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{client, ttl};

/// Connects once the members have a leader. A connection during an election fails immediately.
async fn client_once_led(url: &str) -> LockClient {
    let begun = Instant::now();
    loop {
        match EtcdBackend::connect(url).await {
            Ok(backend) => return LockClient::new(backend),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(begun.elapsed() < SOON, "{error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_and_its_token_outlive_the_leader() {
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(6)).lock().await.unwrap() }
    });
    sleep(Duration::from_millis(300)).await;
    let leader = cluster.leader().unwrap();
    cluster.member(leader).kill();
    // Longer than a TTL: the lock has been renewed through the remaining members.
    sleep(Duration::from_secs(8)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    let token = guard.fencing_token();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(next.fencing_token() > token);
    assert_eq!(next.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_member_may_be_dead_or_stopped() {
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let url = cluster.url();
    for member in 0..3 {
        cluster.member(member).pause().unwrap();
        let one = client_once_led(&format!("{url}?timeout=500ms")).await;
        for _ in 0..10 {
            let guard = timeout(SOON, one.mutex("k").lock()).await.unwrap().unwrap();
            assert_eq!(guard.release().await.unwrap(), Released::Freed);
        }
        cluster.member(member).resume().unwrap();
        cluster.member(member).kill();
        for _ in 0..10 {
            let guard = timeout(SOON, one.mutex("k").lock()).await.unwrap().unwrap();
            assert_eq!(guard.release().await.unwrap(), Released::Freed);
        }
        cluster.member(member).restart().unwrap();
    }
}

/// A lock held in one cluster is free in the other.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_two_clusters_are_refused() {
    let (mut first, mut second) = (EtcdCluster::start().unwrap(), EtcdCluster::start().unwrap());
    let url = format!("etcd://{},{}/", first.at(0).addr(), second.at(0).addr());
    let error = EtcdBackend::connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    assert!(
        error.to_string().contains(&second.at(0).addr().to_string()),
        "{error}"
    );

    // The other cluster is down until the first fails.
    second.member(0).kill();
    let (one, other) = (client(&url).await, client(&url).await);
    let held = one.mutex("k").with_ttl(ttl(120)).lock().await.unwrap();
    second.member(0).restart().unwrap();
    first.member(0).kill();
    other.mutex("k").try_lock().await.unwrap_err();
    assert!(held.is_held());
    first.member(0).restart().unwrap();
    let refused = timeout(SOON, async {
        loop {
            match other.mutex("k").try_lock().await {
                Ok(guard) => return guard,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    });
    assert!(refused.await.unwrap().is_none());
    assert_eq!(held.release().await.unwrap(), Released::Freed);
}

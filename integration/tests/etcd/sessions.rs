//! A session's lease keeps many locks, and they end with it.

use std::time::Duration;

use leasehold_core::{LossReason, Released, Renewal};
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{sleep, timeout};

use crate::support::{client, free, lease_of, locks, ttl, until_locks};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_many_locks_alive_with_few_requests() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let mut guards = Vec::new();
    for n in 0..50 {
        guards.push(
            one.mutex(format!("k{n}"))
                .with_ttl(ttl(2))
                .lock()
                .await
                .unwrap(),
        );
    }
    sleep(Duration::from_secs(5)).await;
    for (n, guard) in guards.into_iter().enumerate() {
        assert!(guard.is_held());
        assert!(
            other
                .mutex(format!("k{n}"))
                .try_lock()
                .await
                .unwrap()
                .is_none()
        );
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unrenewed_lock_is_released_and_its_neighbours_are_kept() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let kept = one.mutex("kept").with_ttl(ttl(2)).lock().await.unwrap();
    let manual = one
        .mutex("manual")
        .with_ttl(ttl(2))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    let next = timeout(SOON, other.mutex("manual").lock())
        .await
        .unwrap()
        .unwrap();
    assert!(!manual.is_held());
    assert_eq!(manual.lost().await, LossReason::Expired);
    assert!(kept.is_held());
    free(next).await;
    free(kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_session_notifies_holder_and_grants_no_waiter() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(3)).lock().await.unwrap() }
    });
    until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
    let revoke = |cluster: &EtcdCluster, which: &str| {
        cluster
            .at(0)
            .ctl(&["lease", "revoke", &lease_of(which, "k")])
            .unwrap();
    };
    // The waiter's session ends first: the waiter queues again in a new one.
    let keys = locks(&cluster);
    let token = guard.fencing_token().unwrap().get();
    let holder = holder_key(&cluster, token);
    let waiting = keys.iter().find(|key| **key != holder).unwrap().clone();
    revoke(&cluster, &waiting);
    until_locks(&cluster, "the waiter in a new session", |keys| {
        keys.len() == 2 && !keys.contains(&waiting)
    })
    .await;
    assert!(guard.is_held() && !waiter.is_finished());
    // Then the holder's session ends.
    revoke(&cluster, &holder);
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(next.fencing_token() > guard.fencing_token());
    assert_eq!(
        timeout(SOON, guard.lost()).await.unwrap(),
        LossReason::SessionEnded
    );
    assert!(next.is_held());
}

fn holder_key(cluster: &EtcdCluster, token: u64) -> String {
    locks(cluster)
        .into_iter()
        .find(|key| {
            let output = cluster
                .at(0)
                .ctl(&["get", key, "--write-out=json"])
                .unwrap();
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            json["kvs"][0]["create_revision"].as_u64() == Some(token)
        })
        .unwrap()
}

//! Waiters are notified and leave nothing behind.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    ErrorKind, Released, Revocation, RevokeOutcome,
    backend::{Attempt, LockBackend, Request},
};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::EtcdCluster,
    steps::SOON,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    relay::{Fate, Relay},
    support::{backend, client, executed, free, locks, ttl, until_locks},
};

/// The fallback poll interval is an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_of_another_process_is_notified() {
    let cluster = EtcdCluster::start().unwrap();
    let url = format!("{}?fallback-poll-interval=3600s", cluster.url());
    let (one, other) = (client(&url).await, client(&url).await);
    for _ in 0..20 {
        let guard = one.mutex("k").lock().await.unwrap();
        let other = other.clone();
        let waiter = tokio::spawn(async move { other.mutex("k").lock().await.unwrap() });
        until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
        free(guard).await;
        free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
    }
}

/// Each answer takes longer than a quarter of 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_with_a_slow_connection_to_etcd_is_granted() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let url = format!("etcd://{}/?timeout=20s&connect-timeout=20s", proxy.addr());
    let (near, far) = (client(&cluster.url()).await, client(&url).await);
    let held = near.mutex("k").with_ttl(ttl(120)).lock().await.unwrap();
    for direction in [Direction::ServerToClient, Direction::ClientToServer] {
        proxy.delay(direction, Duration::from_millis(700));
    }
    let waiter =
        tokio::spawn(async move { far.mutex("k").with_ttl(ttl(120)).lock().await.unwrap() });
    until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
    free(held).await;
    let granted = timeout(4 * SOON, waiter)
        .await
        .expect("the waiter receives no answer")
        .unwrap();
    assert!(granted.is_held());
}

/// The waiter polls its position in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_without_a_watch_looks_often() {
    let cluster = EtcdCluster::start().unwrap();
    let (relay, addr) = Relay::start(cluster.at(0).addr(), Fate::Unwatched).await;
    let (one, other) = (
        client(&cluster.url()).await,
        client(&format!("etcd://{addr}/?fallback-poll-interval=3600s")).await,
    );
    let guard = one.mutex("k").lock().await.unwrap();
    let waiter = tokio::spawn(async move { other.mutex("k").lock().await.unwrap() });
    until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
    let looks = || executed(&cluster, "Txn");
    let (before, begun) = (looks(), Instant::now());
    while looks() < before + 30 {
        assert!(begun.elapsed() < SOON, "{} polls", looks() - before);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(relay.is_done(), "the watch was not blocked");
    free(guard).await;
    free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_waiters_leave_nothing() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    for wait in [1, 3, 10, 30, 100] {
        match other
            .mutex("k")
            .lock_timeout(Duration::from_millis(wait))
            .await
        {
            Ok(guard) => assert!(guard.is_none(), "two clients hold the lock"),
            // The cluster may not have answered yet.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
        }
    }
    until_locks(&cluster, "the holder alone", |keys| keys.len() == 1).await;
    free(guard).await;
    assert_eq!(locks(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_attempt_is_notified_of_the_release() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (backend(&cluster.url()).await, backend(&cluster.url()).await);
    let request = || Request::new("k".try_into().unwrap()).with_ttl(ttl(5));
    for _ in 0..2 {
        let Attempt::Granted(lease) = Arc::clone(&one).try_acquire(request()).await.unwrap() else {
            panic!("contended")
        };
        let Attempt::Contended(contention) =
            Arc::clone(&other).try_acquire(request()).await.unwrap()
        else {
            panic!("granted twice")
        };
        let wake = tokio::spawn(contention.wake.unwrap());
        sleep(Duration::from_millis(100)).await;
        assert!(!wake.is_finished());
        assert_eq!(Arc::clone(&lease).release().await.unwrap(), Released::Freed);
        assert_eq!(
            lease.release().await.unwrap(),
            Released::AlreadyLost,
            "released twice"
        );
        timeout(SOON, wake).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_during_a_wait_does_not_hang_it() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let waiter = tokio::spawn(async move { other.mutex("k").lock().await.unwrap() });
    sleep(Duration::from_millis(200)).await;
    for n in 0..20 {
        cluster
            .at(0)
            .ctl(&["put", "unrelated", &n.to_string()])
            .unwrap();
    }
    let output = cluster
        .at(0)
        .ctl(&["get", "unrelated", "--write-out=json"])
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let revision = json["header"]["revision"].to_string();
    cluster
        .at(0)
        .ctl(&["compact", "--physical", &revision])
        .unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    drop(timeout(SOON, waiter).await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_whose_lease_expires_is_not_granted() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let one = client(&cluster.url()).await;
    let through = client(&format!(
        "etcd://{}/?timeout=300ms&connect-timeout=300ms",
        proxy.addr()
    ))
    .await;
    let guard = one.mutex("k").lock().await.unwrap();
    let waiter = tokio::spawn(async move { through.mutex("k").with_ttl(ttl(2)).lock().await });
    until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
    proxy.blackhole(Direction::Both);
    until_locks(&cluster, "the holder alone", |keys| keys.len() == 1).await;
    free(guard).await;
    let rival = timeout(SOON, one.mutex("k").lock()).await.unwrap().unwrap();
    proxy.heal();
    sleep(Duration::from_secs(1)).await;
    if waiter.is_finished() {
        // The waiter has failed after a TTL without an answer.
        let error = waiter.await.unwrap().unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        free(rival).await;
    } else {
        // The waiter queues again, behind the rival.
        let token = rival.fencing_token();
        free(rival).await;
        let next = timeout(SOON, waiter).await.unwrap().unwrap().unwrap();
        assert!(next.fencing_token() > token);
        free(next).await;
    }
    until_locks(&cluster, "nobody", <[String]>::is_empty).await;
}

/// A notification is a hint: the waiter waits until the holder's key is deleted, whatever else
/// happens to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_the_holders_key_grants_no_waiter() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let key = locks(&cluster).remove(0);
    let waiter = tokio::spawn(async move { other.mutex("k").lock().await.unwrap() });
    until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
    cluster
        .at(0)
        .ctl(&["put", "--ignore-lease", &key, "written by an administrator"])
        .unwrap();
    let looking = backend(&cluster.url()).await;
    let holders = looking
        .inspect(&"k".try_into().unwrap())
        .await
        .unwrap()
        .holders;
    assert!(matches!(
        looking
            .revoke(&holders[0], Revocation::Graceful)
            .await
            .unwrap(),
        RevokeOutcome::FreeWithin(Some(_))
    ));
    // A key before the waiter's, other than the holder's, appears and disappears too.
    let ahead = format!("{key}0");
    cluster.at(0).ctl(&["put", &ahead, "x"]).unwrap();
    cluster.at(0).ctl(&["del", &ahead]).unwrap();
    sleep(Duration::from_millis(500)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    free(guard).await;
    free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
}

/// An operator who revokes a lock between two holders means the next holder.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_revoked_before_its_grant_queues_again() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let holder = locks(&cluster).remove(0);
    let waiter = tokio::spawn(async move { other.mutex("k").lock().await.unwrap() });
    until_locks(&cluster, "holder and waiter", |keys| keys.len() == 2).await;
    let waiting = locks(&cluster)
        .into_iter()
        .find(|key| *key != holder)
        .unwrap();
    let output = cluster
        .at(0)
        .ctl(&["get", &waiting, "--write-out=json"])
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let revision = json["kvs"][0]["create_revision"].as_u64().unwrap();
    cluster
        .at(0)
        .ctl(&["put", &format!("%revoked/{revision}/{waiting}"), ""])
        .unwrap();
    free(guard).await;
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(
        next.fencing_token().unwrap().get() > revision,
        "granted although it was revoked"
    );
    free(next).await;
}

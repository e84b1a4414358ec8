//! Mutual exclusion with `etcdctl lock` in both directions, for held locks and for waiters.

use std::time::Duration;

use leasehold_core::{ErrorKind, LockClient, Released};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{sleep, timeout};

use crate::support::Ctl;

/// Starts `etcdctl lock NAME`, which prints its key once it holds the lock, and holds it until it
/// is interrupted.
fn ctl_lock(cluster: &mut EtcdCluster, name: &str) -> Ctl {
    Ctl::start(cluster.member(0).ctl_command(&["lock", "--ttl=5", name]))
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_and_leasehold_exclude_each_other() {
    let mut cluster = EtcdCluster::start().unwrap();
    let client = LockClient::new(EtcdBackend::connect(&cluster.url()).await.unwrap());
    let mutex = client.mutex("item");

    // etcdctl holds the lock: the library is refused, and waits.
    let ctl = ctl_lock(&mut cluster, "item");
    ctl.line().await;
    assert!(mutex.try_lock().await.unwrap().is_none());
    assert!(client.rwlock("item").try_read().await.unwrap().is_none());
    let waiter = tokio::spawn({
        let mutex = mutex.clone();
        async move { mutex.lock().await.unwrap() }
    });
    sleep(Duration::from_millis(200)).await;
    assert!(!waiter.is_finished());
    ctl.interrupt();
    let guard = timeout(SOON, waiter).await.unwrap().unwrap();

    // The library holds the lock: etcdctl waits until the release.
    let ctl = ctl_lock(&mut cluster, "item");
    sleep(Duration::from_millis(300)).await;
    assert!(!ctl.has_printed());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    ctl.line().await;

    // etcdctl waits behind the library, and precedes later waiters.
    let second = ctl_lock(&mut cluster, "item");
    sleep(Duration::from_millis(300)).await;
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    sleep(Duration::from_millis(200)).await;
    ctl.interrupt();
    second.line().await;
    assert!(!waiter.is_finished());
    second.interrupt();
    let guard = timeout(SOON, waiter).await.unwrap().unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);

    // A reader of the library excludes writers of etcdctl.
    let reader = client.rwlock("item").read().await.unwrap();
    let ctl = ctl_lock(&mut cluster, "item");
    sleep(Duration::from_millis(300)).await;
    assert!(!ctl.has_printed());
    assert_eq!(reader.release().await.unwrap(), Released::Freed);
    ctl.line().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slashes_are_shared_with_exact_names_only() {
    let mut cluster = EtcdCluster::start().unwrap();
    let exact = EtcdBackend::connect(&format!("{}?names=exact", cluster.url()))
        .await
        .unwrap();
    let (exact, encoded) = (
        LockClient::new(exact),
        LockClient::new(EtcdBackend::connect(&cluster.url()).await.unwrap()),
    );
    let ctl = ctl_lock(&mut cluster, "/locks/item");
    ctl.line().await;
    assert!(
        exact
            .mutex("/locks/item")
            .try_lock()
            .await
            .unwrap()
            .is_none()
    );
    drop(
        encoded
            .mutex("/locks/item")
            .try_lock()
            .await
            .unwrap()
            .unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_is_listed_and_can_only_be_revoked_immediately() {
    use leasehold_core::{Revocation, RevokeOutcome, backend::LockBackend};
    let mut cluster = EtcdCluster::start().unwrap();
    let backend = EtcdBackend::connect(&cluster.url()).await.unwrap();
    let ctl = ctl_lock(&mut cluster, "item");
    ctl.line().await;
    let holders = backend
        .inspect(&"item".try_into().unwrap())
        .await
        .unwrap()
        .holders;
    assert_eq!((holders.len(), holders[0].mode), (1, None));
    assert_eq!(
        backend
            .revoke(&holders[0], Revocation::Graceful)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(
        backend
            .revoke(&holders[0], Revocation::Immediate)
            .await
            .unwrap(),
        RevokeOutcome::Freed
    );
}

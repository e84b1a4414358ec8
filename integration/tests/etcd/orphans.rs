//! Keys without an owner are removed.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Released,
    backend::{LockBackend, Request},
};
use leasehold_integration::server::EtcdCluster;
use tokio::time::timeout;

use crate::support::{backend, client, lease_of, locks, ttl, until_locks};

#[tokio::test(flavor = "multi_thread")]
async fn an_acquire_that_is_dropped_at_any_point_leaves_nothing() {
    let cluster = EtcdCluster::start().unwrap();
    let client = client(&cluster.url()).await;
    let holder = client.mutex("held").lock().await.unwrap();
    for micros in (0..3_000).step_by(150) {
        for key in ["free", "held"] {
            let wait = Duration::from_micros(micros);
            drop(timeout(wait, client.mutex(key).lock()).await);
        }
    }
    until_locks(&cluster, "the holder alone", |left| {
        left.len() == 1 && left[0].starts_with("held/")
    })
    .await;
    assert_eq!(holder.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_of_our_session_is_removed_by_a_renewal() {
    let cluster = EtcdCluster::start().unwrap();
    let backend = backend(&cluster.url()).await;
    let request = Request::new("k".try_into().unwrap()).with_ttl(ttl(2));
    let lease = Arc::clone(&backend).acquire(request).await.unwrap();
    let key = locks(&cluster).remove(0);
    let id = lease_of(&key, "k");
    // A lost reply leaves such a key behind.
    let orphan = format!("orphan/{id}-7");
    cluster
        .at(0)
        .ctl(&["put", &format!("--lease={id}"), &orphan, "x"])
        .unwrap();
    Arc::clone(&lease).renew().await.unwrap();
    assert_eq!(locks(&cluster), [key]);
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
}

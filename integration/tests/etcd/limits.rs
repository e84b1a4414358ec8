//! Servers with lower limits.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Released,
    backend::{LockBackend, Request},
};
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::{task::JoinSet, time::timeout};

use crate::support::{backend, client, free, lease_of, locks, ttl};

const TASKS: usize = 64;

/// The limit of operations per transaction is as low as one lock needs, and a little higher.
#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_lock_at_once_where_transactions_are_short() {
    for operations in ["3", "16"] {
        let cluster = EtcdCluster::builder()
            .option("--max-txn-ops", operations)
            .start()
            .unwrap();
        let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
        let mut tasks = JoinSet::new();
        for n in 0..TASKS {
            let (one, other) = (one.clone(), other.clone());
            tasks.spawn(async move {
                let held = one.mutex(format!("k{n}")).lock().await?;
                let readers = (one.rwlock(format!("r{n}")), other.rwlock(format!("r{n}")));
                let (first, second) = (readers.0.read().await?, readers.1.read().await?);
                let waiter = tokio::spawn(async move { other.mutex(format!("k{n}")).lock().await });
                for guard in [held, first, second] {
                    guard.release().await?;
                }
                waiter.await.unwrap()?.release().await
            });
        }
        for outcome in timeout(SOON * 3, tasks.join_all()).await.unwrap() {
            assert_eq!(
                outcome.unwrap_or_else(|error| panic!("{operations}: {error}")),
                Released::Freed
            );
        }
        assert_eq!(locks(&cluster), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_lock_at_once_where_requests_are_small() {
    // The server reads half a MiB more, so that both of its errors occur.
    for bytes in ["20000", "1"] {
        let cluster = EtcdCluster::builder()
            .option("--max-request-bytes", bytes)
            .start()
            .unwrap();
        let one = client(&cluster.url()).await;
        let mut tasks = JoinSet::new();
        for n in 0..TASKS {
            let mutex = one.mutex(format!("{n:0>900}"));
            tasks.spawn(async move { mutex.lock().await });
        }
        for outcome in timeout(SOON * 3, tasks.join_all()).await.unwrap() {
            match outcome {
                Ok(guard) if bytes != "1" => free(guard).await,
                outcome => {
                    let error = outcome.unwrap_err();
                    assert!(
                        error.to_string().contains("--max-request-bytes"),
                        "{error:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_orphans_are_removed_where_transactions_are_short() {
    let cluster = EtcdCluster::builder()
        .option("--max-txn-ops", "8")
        .start()
        .unwrap();
    let backend = backend(&cluster.url()).await;
    let request = Request::new("k".try_into().unwrap()).with_ttl(ttl(120));
    let lease = Arc::clone(&backend).acquire(request).await.unwrap();
    let key = locks(&cluster).remove(0);
    let id = lease_of(&key, "k");
    for n in 0..20 {
        cluster
            .at(0)
            .ctl(&[
                "put",
                &format!("--lease={id}"),
                &format!("orphan/{id}-{n}"),
                "x",
            ])
            .unwrap();
    }
    Arc::clone(&lease).renew().await.unwrap();
    assert_eq!(locks(&cluster), [key]);
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
}

/// One lock needs three operations.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_no_lock_fits_into_is_named() {
    let cluster = EtcdCluster::builder()
        .option("--max-txn-ops", "1")
        .start()
        .unwrap();
    let one = client(&cluster.url()).await;
    let held = one.rwlock("k").write().await.unwrap();
    let error = timeout(
        Duration::from_secs(60),
        client(&cluster.url()).await.rwlock("k").read(),
    )
    .await
    .unwrap()
    .unwrap_err();
    assert!(error.to_string().contains("--max-txn-ops"), "{error:?}");
    free(held).await;
}

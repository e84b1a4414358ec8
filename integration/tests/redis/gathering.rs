//! Many concurrent operations, which share batches.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use crate::support::{Server, granted, refused, request, token, until};
use futures_util::future::join_all;
use leasehold_core::{
    ErrorKind, Released, Result,
    backend::{Lease, LockBackend},
};
use leasehold_redis::{RedisBackend, redis};
use leasehold_testkit::subscribe;
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

/// Enough operations for batches.
const MANY: usize = 100;

/// Enough tasks for batches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gathered_operations_are_as_good_as_lone_ones() {
    let server = Server::start();
    let backend = server.backend().await;
    let tasks: Vec<_> = (0..400)
        .map(|n| {
            let backend = Arc::clone(&backend);
            tokio::spawn(async move {
                let name = format!("k{n}");
                let mut last = 0;
                for _ in 0..20 {
                    let lease = granted(&backend, request(&name)).await;
                    assert!(token(&lease) > last);
                    last = token(&lease);
                    Arc::clone(&lease).renew().await.unwrap();
                    refused(&backend, request(&name)).await;
                    assert_eq!(Arc::clone(&lease).release().await.unwrap(), Released::Freed);
                    assert_eq!(
                        lease.release().await.unwrap(),
                        Released::AlreadyLost,
                        "told once"
                    );
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

async fn many_held(backend: &Arc<RedisBackend>) -> Vec<Arc<dyn Lease>> {
    join_all((0..MANY).map(|n| async move { granted(backend, request(&format!("k{n}"))).await }))
        .await
}

async fn release_all(leases: &[Arc<dyn Lease>]) -> Vec<Result<Released>> {
    join_all(leases.iter().map(|lease| Arc::clone(lease).release())).await
}

#[tokio::test]
async fn each_of_many_releases_is_told_the_truth() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    let leases = many_held(&backend).await;
    // One key is gone, one has another holder, and one is no lock.
    () = redis::cmd("DEL")
        .arg("k20")
        .arg("k21")
        .query_async(&mut raw)
        .await
        .unwrap();
    () = redis::cmd("SET")
        .arg("k50")
        .arg("another's")
        .query_async(&mut raw)
        .await
        .unwrap();
    () = redis::cmd("DEL")
        .arg("k99")
        .query_async(&mut raw)
        .await
        .unwrap();
    () = redis::cmd("RPUSH")
        .arg("k99")
        .arg("x")
        .query_async(&mut raw)
        .await
        .unwrap();
    for (n, released) in release_all(&leases).await.into_iter().enumerate() {
        let expected = if matches!(n, 20 | 21 | 50 | 99) {
            Released::AlreadyLost
        } else {
            Released::Freed
        };
        assert_eq!(released.unwrap(), expected, "k{n}");
    }
    let mut left = server.leftovers().await;
    left.sort();
    assert_eq!(left, ["k50", "k99"]);
}

#[tokio::test]
async fn many_releases_report_each_lock_also_where_one_waits() {
    let server = Server::start();
    let (backend, other) = (server.backend().await, server.backend().await);
    for (waited_for, gone) in [(None, None), (Some(31), Some(7)), (Some(30), Some(8))] {
        let leases =
            join_all((0..MANY).map(|n| granted(&backend, request(&format!("k{n}"))))).await;
        let waiting = waited_for.map(|n| {
            let request = request(&format!("k{n}")).with_label("patient");
            tokio::spawn(Arc::clone(&other).acquire(request))
        });
        if let Some(n) = waited_for {
            let key = crate::support::key(&format!("k{n}"));
            until("registered", || async {
                !backend.inspect(&key).await.unwrap().waiters.is_empty()
            })
            .await;
        }
        if let Some(n) = gone {
            () = redis::cmd("DEL")
                .arg(format!("k{n}"))
                .query_async(&mut server.raw().await)
                .await
                .unwrap();
        }
        for (n, released) in release_all(&leases).await.into_iter().enumerate() {
            let expected = if gone == Some(n) {
                Released::AlreadyLost
            } else {
                Released::Freed
            };
            assert_eq!(released.unwrap(), expected, "k{n}");
        }
        if let Some(waiting) = waiting {
            waiting.await.unwrap().unwrap().release().await.unwrap();
        }
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

/// A subscriber that panics at every event of this crate.
struct PanicsAtEvents;

impl Subscriber for PanicsAtEvents {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("leasehold_redis")
    }

    fn event(&self, _: &Event<'_>) {
        // Panics without a message in the test's output.
        resume_unwind(Box::new("told to panic"));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn a_pipeline_that_panics_ends_no_later_one() {
    let server = Server::start();
    let backend = server.backend().await;
    for _ in 0..3 {
        let leases = many_held(&backend).await;
        // The server no longer knows the script of the pipelines, which log that to the subscriber.
        () = redis::cmd("SCRIPT")
            .arg("FLUSH")
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        let panics = subscribe(PanicsAtEvents);
        let failed: Vec<_> = release_all(&leases)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        drop(panics);
        assert!(failed.len() > 2, "the pipelines did not panic: {failed:?}");
        assert!(
            failed
                .iter()
                .all(|error| error.kind() == ErrorKind::Indeterminate),
            "{failed:?}"
        );
        let released = tokio::time::timeout(Duration::from_secs(60), release_all(&leases)).await;
        for released in released.expect("a release hangs") {
            released.unwrap();
        }
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn many_releases_survive_that_the_server_forgets_its_scripts() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    for _ in 0..2 {
        let leases = many_held(&backend).await;
        () = redis::cmd("SCRIPT")
            .arg("FLUSH")
            .query_async(&mut raw)
            .await
            .unwrap();
        for released in release_all(&leases).await {
            assert_eq!(released.unwrap(), Released::Freed);
        }
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn many_releases_work_on_a_node_of_a_cluster() {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    let mut raw = server.raw().await;
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("ADDSLOTS");
    for slot in 0..16_384 {
        slots.arg(slot);
    }
    () = slots.query_async(&mut raw).await.unwrap();
    until("the cluster works", || async {
        let info: String = redis::cmd("CLUSTER")
            .arg("INFO")
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    let backend = server.backend().await;
    for _ in 0..2 {
        let leases = many_held(&backend).await;
        for released in release_all(&leases).await {
            assert_eq!(released.unwrap(), Released::Freed);
        }
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn read_only_server_does_not_report_a_loss() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    let leases = many_held(&backend).await;
    let replicas = |least: u8| {
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("SET").arg("min-replicas-to-write").arg(least);
        cmd
    };
    () = replicas(1).query_async(&mut raw).await.unwrap();
    // One lock alone, and one of many.
    for outcome in [
        Arc::clone(&leases[0]).renew().await,
        Arc::clone(&leases[0]).release().await.map(|_| ()),
    ]
    .into_iter()
    .chain(
        release_all(&leases)
            .await
            .into_iter()
            .map(|released| released.map(|_| ())),
    ) {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    () = replicas(0).query_async(&mut raw).await.unwrap();
    for released in release_all(&leases).await {
        assert_eq!(released.unwrap(), Released::Freed);
    }
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

//! The basic properties of a lock.

use std::time::Duration;

use leasehold_core::{ErrorKind, LockClient, Released, Ttl};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::{held::Held, server::EtcdCluster, steps::SOON};
use tokio::time::{sleep, timeout};

use crate::support::{client, free, locks, ttl};

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_lock_excludes_and_its_tokens_grow() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let mut last = 0;
    for _ in 0..5 {
        let guard = one.mutex("item/42").lock().await.unwrap();
        let token = guard.fencing_token().unwrap().get();
        assert!(token > last);
        last = token;
        assert!(guard.is_held());
        assert!(
            guard.remaining() > Duration::from_secs(25),
            "{:?}",
            guard.remaining()
        );
        assert!(other.mutex("item/42").try_lock().await.unwrap().is_none());
        // Other names are other locks, even if a name looks like a parent folder of the other.
        drop(other.mutex("item").try_lock().await.unwrap().unwrap());
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    let guard = other.mutex("item/42").try_lock().await.unwrap().unwrap();
    assert!(guard.fencing_token().unwrap().get() > last);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    one.close().await.unwrap();
    other.close().await.unwrap();
    assert_eq!(locks(&cluster), [""; 0]);
    assert_eq!(
        cluster.at(0).keys("").unwrap(),
        [""; 0],
        "close did not revoke the sessions"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_and_no_reader_overtakes_a_waiting_writer() {
    let cluster = EtcdCluster::start().unwrap();
    let (a, b, c) = (
        client(&cluster.url()).await,
        client(&cluster.url()).await,
        client(&cluster.url()).await,
    );
    let first = a.rwlock("k").read().await.unwrap();
    let second = b.rwlock("k").try_read().await.unwrap().unwrap();
    assert!(c.rwlock("k").try_write().await.unwrap().is_none());
    let writer = tokio::spawn({
        let c = c.clone();
        async move { c.rwlock("k").write().await.unwrap() }
    });
    sleep(Duration::from_millis(100)).await;
    assert!(
        b.rwlock("k").try_read().await.unwrap().is_none(),
        "a writer is waiting"
    );
    let reader = tokio::spawn({
        let b = b.clone();
        async move { b.rwlock("k").read().await.unwrap() }
    });
    free(first).await;
    free(second).await;
    let writer = timeout(SOON, writer).await.unwrap().unwrap();
    assert!(!reader.is_finished());
    free(writer).await;
    let reader = timeout(SOON, reader).await.unwrap().unwrap();
    free(reader).await;
    assert_eq!(locks(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_are_counted_and_two_counts_are_a_mismatch() {
    let cluster = EtcdCluster::start().unwrap();
    let (a, b) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let first = a.semaphore("gpu", 2).acquire().await.unwrap();
    let second = b.semaphore("gpu", 2).try_acquire().await.unwrap().unwrap();
    assert_eq!(first.info().fencing_token(), None);
    assert!(b.semaphore("gpu", 2).try_acquire().await.unwrap().is_none());
    assert_eq!(
        client(&cluster.url())
            .await
            .semaphore("gpu", 3)
            .try_acquire()
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    let mutex = a.mutex("gpu").try_lock().await.unwrap().unwrap();
    let third = tokio::spawn({
        let b = b.clone();
        async move { b.semaphore("gpu", 2).acquire().await.unwrap() }
    });
    sleep(Duration::from_millis(100)).await;
    assert!(!third.is_finished());
    free(first).await;
    let third = timeout(SOON, third).await.unwrap().unwrap();
    for guard in [Held::from(second), Held::from(third), Held::from(mutex)] {
        free(guard).await;
    }
    assert_eq!(locks(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_operations_of_etcd_are_typed_errors() {
    let cluster = EtcdCluster::start().unwrap();
    let one = client(&cluster.url()).await;
    for millis in [1, 999, 1_999] {
        let error = one
            .mutex("k")
            .with_ttl(Ttl::from_millis(millis).unwrap())
            .lock()
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let mut guards = Vec::new();
    for secs in 2..=5 {
        guards.push(
            one.mutex(format!("k{secs}"))
                .with_ttl(ttl(secs))
                .lock()
                .await
                .unwrap(),
        );
    }
    let error = one.mutex("k6").with_ttl(ttl(6)).lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        EtcdBackend::connect("etcd://127.0.0.1:1/")
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_names_are_locks_of_their_own() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let names: [&[u8]; 12] = [
        b"a",
        b"a/b",
        b"a/",
        b"/",
        b"..",
        b"{}",
        b"a}b",
        b"%",
        b"a%2Fb",
        b"\0",
        b"a\nb\xff",
        "🔒".as_bytes(),
    ];
    let mut guards = Vec::new();
    for name in names {
        guards.push(Held::from(
            one.mutex(name).try_lock().await.unwrap().unwrap(),
        ));
        guards.push(Held::from(
            one.semaphore(name, 1).try_acquire().await.unwrap().unwrap(),
        ));
    }
    for name in names {
        assert!(other.mutex(name).try_lock().await.unwrap().is_none());
    }
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tasks_get_thousands_of_locks() {
    let cluster = EtcdCluster::start().unwrap();
    let one = client(&cluster.url()).await;
    // Enough for batches; every tenth name is used twice.
    let tasks = (0..2_000).map(|n| {
        let one = one.clone();
        tokio::spawn(async move {
            let guard = one.mutex(format!("k{}", n % 1_800)).lock().await.unwrap();
            let token = guard.fencing_token();
            free(guard).await;
            token
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        assert!(timeout(SOON * 4, task).await.unwrap().unwrap().is_some());
    }
    assert_eq!(locks(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_users_own_will_do() {
    use leasehold_etcd::{EtcdConfig, etcd_client::Client};
    let cluster = EtcdCluster::start().unwrap();
    let own = Client::connect([cluster.at(0).addr().to_string()], None)
        .await
        .unwrap();
    let backend = EtcdBackend::from_client(own, EtcdConfig::default().with_prefix("p/"))
        .await
        .unwrap();
    let client = LockClient::new(backend);
    let guard = client.mutex("k").lock().await.unwrap();
    assert!(cluster.at(0).keys("p/k/").unwrap().len() == 1);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

//! PostgreSQL lets one session lock a key repeatedly and in both modes. The library must exclude
//! its own clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    ErrorKind, LockClient, LockKey, Mode, Ttl,
    backend::{Attempt, Lease, LockBackend, Request},
};
use leasehold_integration::{
    panics::nothing_panicked,
    server::{PostgresServer, shared_postgres},
    steps::{SOON, millis, token},
};
use leasehold_postgres::{KeyScheme, PostgresBackend};
use tokio::task::{JoinSet, block_in_place};

use crate::support::{client_of, holders, nothing_left};

const TTL: u64 = 10_000;
/// Two names with the same CRC-32. The scheme identifies a name only by this hash.
const TWINS: [&str; 2] = ["plumless", "buckeroo"];

fn url_with_twins(url: &str) -> String {
    format!(
        "{url}{}keys=rails",
        if url.contains('?') { '&' } else { '?' }
    )
}

#[test]
fn the_twins_have_one_key() {
    let [one, other] = TWINS.map(|name| KeyScheme::Rails.key_of(name.as_bytes()).unwrap());
    assert_eq!(one, other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colliding_names_contend_within_and_between_clients() {
    let server = PostgresServer::start().unwrap();
    let url = url_with_twins(&server.url());
    let (client, rival) = (client_of(&url, TTL).await, client_of(&url, TTL).await);
    let [one, other] = TWINS;
    for second in [&client, &rival] {
        let guard = client.mutex(one).lock().await.unwrap();
        assert!(second.mutex(other).try_lock().await.unwrap().is_none());
        assert!(second.rwlock(other).try_read().await.unwrap().is_none());
        let mutex = second.mutex(other);
        let waiting = tokio::spawn(async move { mutex.lock().await.unwrap() });
        tokio::time::sleep(millis(300)).await;
        assert!(!waiting.is_finished(), "both names hold one key");
        let first = token(&guard);
        guard.release().await.unwrap();
        let next = tokio::time::timeout(SOON, waiting)
            .await
            .expect("never notified")
            .unwrap();
        assert!(token(&next) > first);
        assert!(client.mutex(one).try_lock().await.unwrap().is_none());
        next.release().await.unwrap();
    }
    block_in_place(|| nothing_left(&server, SOON));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_colliding_names_exclude_each_others_writers() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&url_with_twins(&server.url()), TTL).await;
    let [one, other] = TWINS;
    let (first, second) = (
        client.rwlock(one).read().await.unwrap(),
        client
            .rwlock(other)
            .read_timeout(SOON)
            .await
            .unwrap()
            .unwrap(),
    );
    for name in TWINS {
        assert!(client.mutex(name).try_lock().await.unwrap().is_none());
    }
    first.release().await.unwrap();
    for name in TWINS {
        assert!(client.mutex(name).try_lock().await.unwrap().is_none());
    }
    second.release().await.unwrap();
    client
        .mutex(one)
        .lock_timeout(SOON)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    block_in_place(|| nothing_left(&server, SOON));
    nothing_panicked();
}

/// One lock protects the counter, whichever name and client is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_under_two_names_with_one_hash_is_lost() {
    let server = shared_postgres().unwrap();
    let url = url_with_twins(server.url());
    let clients = [client_of(&url, TTL).await, client_of(&url, TTL).await];
    let value = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..8 {
        let (mutex, value) = (clients[n % 2].mutex(TWINS[n / 2 % 2]), Arc::clone(&value));
        tasks.spawn(async move {
            for _ in 0..25 {
                let guard = mutex
                    .lock_timeout(Duration::from_secs(60))
                    .await
                    .unwrap()
                    .unwrap();
                let read = value.load(Ordering::SeqCst);
                tokio::task::yield_now().await;
                value.store(read + 1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(value.load(Ordering::SeqCst), 200);
    nothing_panicked();
}

fn request(mode: Mode) -> Request {
    Request::new(LockKey::new("k").unwrap())
        .with_ttl(Ttl::from_millis(TTL).unwrap())
        .with_mode(mode)
}

async fn attempt(backend: &Arc<dyn LockBackend>, mode: Mode) -> Option<Arc<dyn Lease>> {
    match Arc::clone(backend).try_acquire(request(mode)).await {
        Ok(Attempt::Granted(lease)) => Some(lease),
        Ok(Attempt::Contended(_)) => None,
        Err(error) if error.kind() == ErrorKind::Conflict => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// Bypasses the client's local queues; all requests of one backend share a session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn name_is_never_granted_twice_on_one_session() {
    let server = PostgresServer::start().unwrap();
    let backend: Arc<dyn LockBackend> = PostgresBackend::connect(&server.url()).await.unwrap();
    let writer = attempt(&backend, Mode::Exclusive)
        .await
        .expect("the lock is not free");
    assert!(
        attempt(&backend, Mode::Exclusive).await.is_none(),
        "granted twice"
    );
    assert!(
        attempt(&backend, Mode::Shared).await.is_none(),
        "a reader beside a writer"
    );
    writer.release().await.unwrap();

    let (one, other) = (
        attempt(&backend, Mode::Shared).await,
        attempt(&backend, Mode::Shared).await,
    );
    let (one, other) = (
        one.expect("the lock is not free"),
        other.expect("readers exclude each other"),
    );
    assert!(
        attempt(&backend, Mode::Exclusive).await.is_none(),
        "a writer beside readers"
    );
    one.release().await.unwrap();
    assert!(
        attempt(&backend, Mode::Exclusive).await.is_none(),
        "a writer beside a reader"
    );
    assert_eq!(block_in_place(|| holders(&server, "k")).len(), 1);
    other.release().await.unwrap();
    let writer = attempt(&backend, Mode::Exclusive)
        .await
        .expect("the lock is not free");
    writer.release().await.unwrap();
    block_in_place(|| nothing_left(&server, SOON));
}

/// Several clients over one backend wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_over_one_backend_hand_one_name_to_each_other() {
    let server = shared_postgres().unwrap();
    let backend: Arc<dyn LockBackend> = PostgresBackend::connect(server.url()).await.unwrap();
    let clients = [
        LockClient::new(Arc::clone(&backend)),
        LockClient::new(backend),
    ];
    let mut largest = 0;
    for turn in 0..10 {
        let (one, other) = (&clients[turn % 2], &clients[(turn + 1) % 2]);
        let guard = one
            .mutex("handed")
            .lock_timeout(SOON)
            .await
            .unwrap()
            .unwrap();
        assert!(token(&guard) > largest);
        largest = token(&guard);
        let mutex = other.mutex("handed");
        let waiting = tokio::spawn(async move { mutex.lock().await.unwrap() });
        tokio::time::sleep(millis(20)).await;
        assert!(!waiting.is_finished(), "granted twice");
        guard.release().await.unwrap();
        let next = tokio::time::timeout(SOON, waiting)
            .await
            .expect("never notified")
            .unwrap();
        assert!(token(&next) > largest);
        largest = token(&next);
        next.release().await.unwrap();
    }
    nothing_panicked();
}

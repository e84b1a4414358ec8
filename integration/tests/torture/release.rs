use std::sync::Arc;

use leasehold_core::{
    ErrorKind, LockKey, Released, Renewal, Ttl,
    backend::{Attempt, Lease, LockBackend, Request},
};
use leasehold_integration::server::RedisServer;

use crate::support::{Stage, client_of, millis, nothing_left, nothing_panicked, token};

/// A wrongly extended lease would stay this long.
const TTL: u64 = 30_000;

async fn lease(backend: &Arc<dyn LockBackend>, key: &LockKey) -> Arc<dyn Lease> {
    let request = Request::new(key.clone()).with_ttl(Ttl::from_millis(TTL).unwrap());
    match Arc::clone(backend).try_acquire(request).await.unwrap() {
        Attempt::Granted(lease) => lease,
        Attempt::Contended(contention) => panic!("`{key}` is still held: {contention:?}"),
    }
}

/// Releases and renews concurrently on two threads, in either order. A rival then acquires the
/// lock, and stale renewals and releases must not affect it.
async fn race(url: &str, rounds: usize) {
    let client = client_of(url, TTL).await;
    let backend = Arc::clone(client.backend());
    let key = LockKey::new("race").unwrap();
    let mut revived = 0;
    for round in 0..rounds {
        let ours = lease(&backend, &key).await;
        let (renewing, releasing) = (Arc::clone(&ours), Arc::clone(&ours));
        let (first, second) = if round % 2 == 0 {
            let renew = tokio::spawn(renewing.renew());
            let released = releasing.release().await.unwrap();
            (released, renew.await.unwrap())
        } else {
            let release = tokio::spawn(releasing.release());
            let renewed = renewing.renew().await;
            (release.await.unwrap().unwrap(), renewed)
        };
        assert_eq!(first, Released::Freed, "round {round}");
        revived += usize::from(second.is_ok());
        // The lock is free whichever came last.
        let rival = lease(&backend, &key).await;
        assert!(rival.fencing_token() > ours.fencing_token());
        assert_eq!(
            Arc::clone(&ours).renew().await.unwrap_err().kind(),
            ErrorKind::Lost,
            "round {round}"
        );
        assert_ne!(
            Arc::clone(&ours).release().await.unwrap(),
            Released::StillHeld,
            "round {round}"
        );
        assert!(
            Arc::clone(&rival).renew().await.is_ok(),
            "round {round}: another client freed the rival's lock"
        );
        assert_eq!(
            rival.release().await.unwrap(),
            Released::Freed,
            "round {round}"
        );
    }
    println!("{url}: {revived} of {rounds} renewals came before the release");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_races_a_renewal_wins_on_redis() {
    let server = RedisServer::start().unwrap();
    race(&server.url(), 3000).await;
    nothing_left(&server, millis(1000));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_races_a_renewal_wins_in_files() {
    let stage = Stage::on_files(TTL);
    race(stage.url(), 3000).await;
    nothing_panicked();
}

/// A renewal that has been sent is still pending when the guard is released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guard_can_be_released_during_its_renewal() {
    let server = RedisServer::start().unwrap();
    let (client, rival) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let mut under_way = 0;
    for round in 0..1500 {
        let guard = client.mutex("k").lock().await.unwrap();
        let old = token(&guard);
        {
            let mut renewing = std::pin::pin!(guard.renew());
            under_way += usize::from(futures_util::poll!(&mut renewing).is_pending());
        }
        assert_eq!(
            guard.release().await.unwrap(),
            Released::Freed,
            "round {round}"
        );
        let taken = rival.mutex("k").try_lock().await;
        let taken = taken
            .unwrap()
            .unwrap_or_else(|| panic!("round {round}: still locked"));
        assert!(token(&taken) > old);
        assert_eq!(
            taken.release().await.unwrap(),
            Released::Freed,
            "round {round}"
        );
    }
    assert!(under_way >= 500, "only {under_way} renewals were pending");
    nothing_left(&server, millis(1000));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_release_reports_loss_and_spares_the_rival() {
    const SHORT: u64 = 300;
    let server = RedisServer::start().unwrap();
    let (client, rival) = (
        client_of(&server.url(), SHORT).await,
        client_of(&server.url(), TTL).await,
    );
    let guard = client
        .mutex("k")
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    let old = token(&guard);
    let taken = rival
        .mutex("k")
        .lock_timeout(millis(SHORT + 1000))
        .await
        .unwrap()
        .unwrap();
    assert!(token(&taken) > old);
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
    assert!(client.mutex("k").try_lock().await.unwrap().is_none());
    assert!(taken.renew().await.is_ok());
    assert_eq!(taken.release().await.unwrap(), Released::Freed);
    nothing_left(&server, millis(1000));
    nothing_panicked();
}

//! Attempts that yield to waiters.

use std::sync::Arc;

use leasehold_core::{
    Released, Ttl,
    backend::{Attempt, LockBackend, Request},
};
use leasehold_integration::{panics::nothing_panicked, server::PostgresServer};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use crate::support::{HOUR, MINUTE, client_of, nothing_left, waiting};

fn turn(key: &str) -> Request {
    Request::new(key.try_into().unwrap()).with_ttl(Ttl::from_millis(HOUR).unwrap())
}

/// The waiter is kept from acquiring the free lock, so that only its marker shows that it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yielding_attempt_leaves_a_free_lock_to_a_waiter() {
    let mut server = PostgresServer::start().unwrap();
    let holder = PostgresBackend::connect(&server.url()).await.unwrap();
    let waiter = client_of(&server.url(), HOUR).await;
    let attempt = async |request: Request| Arc::clone(&holder).try_acquire(request).await.unwrap();
    let Attempt::Granted(lease) =
        attempt(turn("k").with_waiting(|waiting| waiting.yields = true)).await
    else {
        panic!("refused without a waiter")
    };
    let waiting = waiting(&server, &waiter, 1).await;
    let signed =
        "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'";
    let sleeper = block_in_place(|| server.psql(signed).unwrap())
        .parse()
        .unwrap();
    block_in_place(|| server.pause_backend(sleeper).unwrap());
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    let polite = turn("k").with_waiting(|waiting| waiting.yields = true);
    assert!(
        matches!(attempt(polite.clone()).await, Attempt::Contended(_)),
        "alone"
    );
    let (alone, together, _other) = tokio::join!(
        attempt(turn("other")),
        attempt(polite),
        attempt(turn("third"))
    );
    assert!(
        matches!(together, Attempt::Contended(_)),
        "granted in a batch"
    );
    assert!(matches!(alone, Attempt::Granted(_)));
    let Attempt::Granted(lease) = attempt(turn("k")).await else {
        panic!("refused although the attempt does not yield")
    };
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    block_in_place(|| server.resume_backend(sleeper).unwrap());
    tokio::time::timeout(MINUTE, waiting)
        .await
        .expect("hangs")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

/// Both a single release and a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_and_batched_releases_free_contended_locks() {
    let server = PostgresServer::start().unwrap();
    let holder = PostgresBackend::connect(&server.url()).await.unwrap();
    let waiter = client_of(&server.url(), HOUR).await;
    let taken = async |turn: &Request| Arc::clone(&holder).acquire(turn.clone()).await.unwrap();
    for waited_for in [false, true] {
        let turns = [turn("k"), turn("other"), turn("third")];
        let [lease, other, third] = [
            taken(&turns[0]).await,
            taken(&turns[1]).await,
            taken(&turns[2]).await,
        ];
        let waiting = if waited_for {
            Some(waiting(&server, &waiter, 3).await)
        } else {
            None
        };
        if waited_for {
            // All releases are batched.
            let (one, two, three) = tokio::join!(lease.release(), other.release(), third.release());
            assert_eq!(
                [one.unwrap(), two.unwrap(), three.unwrap()],
                [Released::Freed; 3]
            );
        } else {
            for lease in [lease, other, third] {
                assert_eq!(lease.release().await.unwrap(), Released::Freed);
            }
        }
        if let Some(waiting) = waiting {
            waiting.await.unwrap().unwrap().release().await.unwrap();
        }
    }
    block_in_place(|| nothing_left(&server, MINUTE));
    nothing_panicked();
}

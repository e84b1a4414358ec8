//! Ends of single sessions.

use std::time::Instant;

use leasehold_core::LossReason;
use leasehold_integration::{
    panics::nothing_panicked,
    server::PostgresServer,
    steps::{SOON, millis, token, until},
};
use tokio::task::block_in_place;

use crate::support::{client_of, connections, holder, nothing_left};

const TTL: u64 = 3000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_backend_notifies_holder_and_waiter_is_granted() {
    let server = PostgresServer::start().unwrap();
    let (client, rival) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let guard = client.mutex("k").lock().await.unwrap();
    let mutex = rival.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    tokio::time::sleep(millis(300)).await;
    let terminated = Instant::now();
    block_in_place(|| {
        let pid = holder(&server, "k");
        assert_eq!(
            server
                .psql(&format!("SELECT pg_terminate_backend({pid})"))
                .unwrap(),
            "t"
        );
    });
    // The loss is reported by the next renewal at the latest.
    let lost = tokio::time::timeout(SOON, guard.lost())
        .await
        .expect("not reported");
    println!("reported after {:?}: {lost:?}", terminated.elapsed());
    assert!(!guard.is_held());
    assert_eq!(lost, LossReason::SessionEnded);
    let next = tokio::time::timeout(SOON, waiting)
        .await
        .expect("the waiter hangs")
        .unwrap()
        .unwrap();
    assert!(token(&next) > token(&guard));
    // The client continues in a new session.
    next.release().await.unwrap();
    client
        .mutex("k")
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_with_terminated_backends_keeps_waiting() {
    let server = PostgresServer::start().unwrap();
    let holder_client = client_of(&server.url(), 60_000).await;
    let guard = holder_client.mutex("k").lock().await.unwrap();
    let kept = block_in_place(|| connections(&server));
    let waiter = client_of(&server.url(), TTL).await;
    let mutex = waiter.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    let others = |server: &PostgresServer| {
        let mut all = connections(server);
        let pid = |row: &String| row.split('|').next().unwrap().to_owned();
        let kept: Vec<_> = kept.iter().map(pid).collect();
        all.retain(|row| !kept.contains(&pid(row)));
        all.iter().map(pid).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        block_in_place(|| {
            until("the waiter is connected", SOON, || {
                !others(&server).is_empty()
            });
            for pid in others(&server) {
                server
                    .psql(&format!("SELECT pg_terminate_backend({pid})"))
                    .unwrap();
            }
        });
        tokio::time::sleep(millis(200)).await;
        assert!(guard.is_held());
    }
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(SOON, waiting)
        .await
        .expect("the waiter hangs")
        .unwrap();
    // A waiter may end with an error that reports this. It must not hang, nor hold a lock that it
    // was not granted.
    match granted {
        Ok(guard) => drop(guard.release().await.unwrap()),
        Err(error) => assert!(error.is_retryable(), "{error:?}"),
    }
    block_in_place(|| nothing_left(&server, SOON));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_in_other_sessions_do_not_notice_a_terminated_one() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let short = client.mutex("short").lock().await.unwrap();
    let long = client
        .mutex("long")
        .with_ttl(leasehold_core::Ttl::from_secs(60).unwrap())
        .lock()
        .await
        .unwrap();
    let (one, other) = block_in_place(|| (holder(&server, "short"), holder(&server, "long")));
    assert_ne!(one, other, "two TTLs share a session");
    block_in_place(|| {
        server
            .psql(&format!("SELECT pg_terminate_backend({one})"))
            .unwrap()
    });
    let lost = tokio::time::timeout(SOON, short.lost())
        .await
        .expect("not reported");
    assert_eq!(lost, LossReason::SessionEnded);
    assert!(long.is_held());
    long.renew().await.unwrap();
    long.release().await.unwrap();
    nothing_panicked();
}

/// A paused backend keeps its locks, and its client can neither renew nor reach it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_whose_backend_is_stopped_gives_up_by_its_deadline() {
    let mut server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let pid = block_in_place(|| {
        let pid = holder(&server, "k");
        server.pause_backend(pid).unwrap();
        pid
    });
    let left = guard.remaining();
    tokio::time::timeout(left + millis(3000), guard.lost())
        .await
        .expect("not lost by its deadline");
    assert!(!guard.is_held());
    block_in_place(|| server.resume_backend(pid).unwrap());
    drop(guard);
    client
        .mutex("k")
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

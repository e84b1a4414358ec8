//! Crashes and restarts of the whole server.

use std::{net::Ipv4Addr, time::Duration};

use leasehold_core::{ErrorKind, LockGuard};
use leasehold_integration::{
    panics::nothing_panicked,
    server::PostgresServer,
    steps::{is_a_fault, millis, token},
};
use tokio::{io::AsyncReadExt, net::TcpListener, task::block_in_place};

use crate::support::{client_of, connect, holder, nothing_left};

const TTL: u64 = 3000;

/// The limit for an effect without any expiry, long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Injects a fault while a lock is held and waited for. The holder notices it. The
/// waiter gets the lock with a larger token, or a typed fault. Later operations succeed, and
/// nothing is left over.
async fn strike(how: impl FnOnce(&mut PostgresServer)) {
    let mut server = PostgresServer::builder().durable().start().unwrap();
    let (client, rival) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let guard = client.mutex("k").lock().await.unwrap();
    let mutex = rival.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    tokio::time::sleep(millis(300)).await;
    block_in_place(|| how(&mut server));
    tokio::time::timeout(PATIENCE, guard.lost())
        .await
        .expect("the holder does not notice");
    let outcome = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the waiter hangs")
        .unwrap();
    let mut largest = token(&guard);
    match outcome {
        Ok(next) => largest = released(next, largest).await,
        Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
    }
    for client in [&client, &rival] {
        largest = released(
            client
                .mutex("k")
                .lock_timeout(PATIENCE)
                .await
                .unwrap()
                .unwrap(),
            largest,
        )
        .await;
    }
    drop(guard);
    block_in_place(|| nothing_left(&server, PATIENCE));
    nothing_panicked();
}

async fn released(guard: LockGuard, before: u64) -> u64 {
    let token = token(&guard);
    assert!(token > before, "{token} after {before}");
    guard.release().await.unwrap();
    token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_frees_the_lock_and_tokens_grow_on() {
    strike(|server| server.restart().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oom_killed_server_process_frees_lock_and_tokens_keep_growing() {
    strike(|server| {
        let pid = holder(server, "k");
        server.kill_backend(pid).unwrap();
        server.wait_until_it_answers().unwrap();
    })
    .await;
}

/// The killed backend may be any session's: the server ends all backends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oom_kill_of_a_foreign_session_frees_the_lock_too() {
    strike(|server| {
        let mut stranger = server.psql_session().unwrap();
        let pid = stranger
            .ask("SELECT pg_backend_pid()", PATIENCE)
            .unwrap()
            .parse()
            .unwrap();
        server.kill_backend(pid).unwrap();
        server.wait_until_it_answers().unwrap();
    })
    .await;
}

/// A load balancer without servers does this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_closes_every_connection_is_a_retryable_error() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = nobody.local_addr().unwrap();
    let closing = tokio::spawn(async move {
        loop {
            let (mut client, _) = nobody.accept().await.unwrap();
            // The request is read, so that the client sees an end of the stream and not a reset.
            assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
        }
    });
    for mode in ["prefer", "disable"] {
        let url = format!("postgres://postgres@{addr}/postgres?sslmode={mode}&connect-timeout=10s");
        let error = connect(&url).await.expect_err("connected without a server");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{mode}: {error:?}");
        assert!(error.is_retryable(), "{mode}: {error:?}");
    }
    closing.abort();
    nothing_panicked();
}

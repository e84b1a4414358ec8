//! Closing a client with operations in progress.

use std::time::Duration;

use futures_util::future::join_all;
use leasehold_core::{ErrorKind, Mutex};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::RedisServer,
};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use crate::support::{PATIENCE, client_of, is_a_fault, millis, nothing_panicked};

const TTL: u64 = 60_000;

/// Enough releases that some are batched.
#[tokio::test]
async fn nothing_runs_on_after_a_client_with_many_locks_is_closed() {
    let server = RedisServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let mut held = Vec::new();
    for n in 0..100 {
        held.push(client.mutex(format!("k{n}")).lock().await.unwrap());
    }
    client.close().await.unwrap();
    assert!(held.iter().all(|guard| !guard.is_held()));
    drop((held, client));
    all_tasks_end().await;
    nothing_panicked();
}

#[tokio::test]
async fn nothing_runs_on_after_a_client_of_a_dead_server_is_dropped() {
    let mut server = RedisServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    server.kill();
    // The client knows now that the connection is lost. It sends no request that it would have to
    // undo.
    client
        .inspect("k")
        .await
        .expect_err("answered without a server");
    let mutexes: Vec<_> = (0..100).map(|n| client.mutex(format!("k{n}"))).collect();
    for outcome in join_all(mutexes.iter().map(Mutex::try_lock)).await {
        assert!(is_a_fault(
            outcome.expect_err("granted without a server").kind()
        ));
    }
    drop((mutexes, client));
    all_tasks_end().await;
    nothing_panicked();
}

async fn all_tasks_end() {
    let ended = async {
        while Handle::current().metrics().num_alive_tasks() > 0 {
            sleep(millis(20)).await;
        }
    };
    timeout(PATIENCE, ended)
        .await
        .expect("a task is still running");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_during_close_is_released_before_close_returns() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_of(&server.url_at(proxy.addr()), TTL).await;
    let rival = client_of(&server.url(), TTL).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    proxy.delay(Direction::ServerToClient, millis(300));
    let mutex = client.mutex("k");
    let locking = tokio::spawn(async move { mutex.lock().await });
    sleep(millis(100)).await;
    client.close().await.unwrap();
    assert_eq!(
        locking
            .await
            .unwrap()
            .expect_err("granted by a closed client")
            .kind(),
        ErrorKind::Closed
    );
    rival
        .mutex("k")
        .try_lock()
        .await
        .unwrap()
        .expect("the lock was left held")
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

/// Closing takes far less than the TTL, for which a release would otherwise be retried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_closes_while_server_is_dead_and_releases_fail() {
    let mut server = RedisServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let (dropped, kept) = (
        client.mutex("dropped").lock().await.unwrap(),
        client.mutex("kept").lock().await.unwrap(),
    );
    server.kill();
    drop(dropped);
    sleep(Duration::from_millis(500)).await;
    timeout(PATIENCE, client.close())
        .await
        .expect("hangs")
        .unwrap();
    assert!(!kept.is_held());
    nothing_panicked();
}

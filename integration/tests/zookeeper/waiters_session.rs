//! The session of the waiters ends before that of the holders.

use std::time::Duration;

use leasehold_core::LockClient;
use leasehold_integration::{
    held::HeldMode,
    proxy::{Direction, Proxy},
    server::ZookeeperServer,
    steps::millis,
};
use leasehold_zookeeper::ZookeeperBackend;
use tokio::time::timeout;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{SOON, free, nothing_left, sessions, ttl, until, until_waiting};

const HOUR: u64 = 3_600;

/// Connects a client whose locks have a TTL of an hour.
async fn client(url: &str) -> LockClient {
    let backend = ZookeeperBackend::connect(url).await.unwrap();
    LockClient::builder(backend).with_ttl(ttl(HOUR)).build()
}

/// Starts a server that keeps sessions for an hour.
fn server() -> ZookeeperServer {
    ZookeeperServer::builder()
        .setting("maxSessionTimeout", HOUR * 1_000)
        .start()
        .unwrap()
}

/// The session of the waiters ends a little later.
#[tokio::test(flavor = "multi_thread")]
async fn a_granted_lock_outlives_the_waiters_session() {
    let server = server();
    for mode in [HeldMode::Writer, HeldMode::Reader, HeldMode::Permit] {
        let (one, other) = (client(&server.url()).await, client(&server.url()).await);
        let held = mode.rival().lock(&one, "k").await.unwrap();
        let waiter = tokio::spawn({
            let other = other.clone();
            async move { mode.lock(&other, "k").await.unwrap() }
        });
        until_waiting(&server, 1).await;
        let inspected = one.inspect("k").await.unwrap();
        assert_eq!(
            (inspected.holders.len(), inspected.waiters.len()),
            (1, 1),
            "{mode:?}"
        );
        let before = held.fencing_token();
        free(held).await;
        let granted = timeout(SOON, waiter).await.unwrap().unwrap();
        assert!(granted.fencing_token() > before || mode == HeldMode::Permit);
        assert!(
            granted.remaining() > Duration::from_secs(HOUR / 4),
            "{mode:?}: {:?}",
            granted.remaining()
        );
        let inspected = one.inspect("k").await.unwrap();
        assert_eq!(
            (inspected.holders.len(), inspected.waiters.len()),
            (1, 0),
            "{mode:?}"
        );
        assert_eq!(
            inspected.holders[0].token,
            granted.fencing_token(),
            "{mode:?}"
        );
        // The two clients' sessions remain when the waiters' session is closed or has expired.
        until("the session of the waiters ends", || {
            sessions(&server).len() == 2
        })
        .await;
        assert!(granted.is_held());
        let contended = timeout(millis(1_000), mode.rival().lock(&one, "k"));
        assert!(contended.await.is_err(), "{mode:?}: granted twice");
        free(granted).await;
        one.close().await.unwrap();
        other.close().await.unwrap();
        nothing_left(&server, SOON);
    }
}

/// Each answer takes longer than a quarter of 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_with_a_slow_connection_is_granted() {
    let server = server();
    let proxy = Proxy::start(server.addr()).unwrap();
    let url = format!(
        "{}?timeout=20s&connect-timeout=20s",
        server.url_at(proxy.addr())
    );
    let (near, far) = (client(&server.url()).await, client(&url).await);
    let held = HeldMode::Writer.lock(&near, "k").await.unwrap();
    for direction in [Direction::ServerToClient, Direction::ClientToServer] {
        proxy.delay(direction, millis(700));
    }
    let waiter = tokio::spawn(async move { HeldMode::Writer.lock(&far, "k").await.unwrap() });
    until_waiting(&server, 1).await;
    free(held).await;
    let granted = timeout(2 * SOON, waiter)
        .await
        .expect("the waiter receives no answer")
        .unwrap();
    assert!(granted.is_held());
}

/// A free lock is acquired in the session that holds it.
#[tokio::test(flavor = "multi_thread")]
async fn free_lock_costs_two_transactions_before_and_after_waiting() {
    const PAIRS: i64 = 50;
    let server = server();
    let operator = Client::connect(&server.addr().to_string()).await.unwrap();
    let (one, other) = (client(&server.url()).await, client(&server.url()).await);
    let pairs = async || {
        let mode = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let mark = async |path| operator.create(path, b"", &mode).await.unwrap().0.czxid;
        let begun = mark("/begun").await;
        for _ in 0..PAIRS {
            free(HeldMode::Writer.lock(&one, "k").await.unwrap()).await;
        }
        let ended = mark("/ended").await;
        operator.delete("/begun", None).await.unwrap();
        operator.delete("/ended", None).await.unwrap();
        ended - begun
    };
    drop(
        HeldMode::Writer
            .lock(&one, "k")
            .await
            .unwrap()
            .release()
            .await,
    );
    let before = pairs().await;
    let held = HeldMode::Writer.lock(&other, "k").await.unwrap();
    let waiter = tokio::spawn({
        let one = one.clone();
        async move { free(HeldMode::Writer.lock(&one, "k").await.unwrap()).await }
    });
    until_waiting(&server, 1).await;
    free(held).await;
    timeout(SOON, waiter).await.unwrap().unwrap();
    let after = pairs().await;
    // Opening, renewing and closing sessions costs transactions too.
    assert!(
        before < PAIRS * 5 / 2 && after < PAIRS * 5 / 2,
        "{before} and {after} for {PAIRS} pairs"
    );
}

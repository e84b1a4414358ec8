//! A watch event is a hint: a waiter is granted by what it reads, never by the event.

use std::time::Duration;

use leasehold_core::{HolderRef, LockClient, Revocation};
use leasehold_integration::{server::ZookeeperServer, steps::token};
use leasehold_zookeeper::zookeeper_client::{Acls, Client, CreateMode};
use tokio::time::{sleep, timeout};

use crate::support::{SOON, client, free, members, nothing_left, ttl, until, until_waiting};

/// The number of writes to the holder's node.
const WRITES: usize = 5;

/// A write notifies the waiter within this time on an idle machine. A slower waiter passes
/// untested.
const PAUSE: Duration = Duration::from_millis(200);

async fn operator(server: &ZookeeperServer) -> Client {
    Client::connect(&server.addr().to_string()).await.unwrap()
}

async fn holder(client: &LockClient) -> HolderRef {
    client.inspect("k").await.unwrap().holders.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_the_holders_node_grants_nobody() {
    let server = ZookeeperServer::start().unwrap();
    let url = format!("{}?tick=500ms", server.url());
    let (one, other, third) = (client(&url).await, client(&url).await, client(&url).await);
    let operator = operator(&server).await;
    let guard = one.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    let path = members(&server).pop_first().unwrap();
    let writer =
        tokio::spawn(async move { other.mutex("k").with_ttl(ttl(10)).lock().await.unwrap() });
    until_waiting(&server, 1).await;
    let reader =
        tokio::spawn(async move { third.rwlock("k").with_ttl(ttl(10)).read().await.unwrap() });
    until_waiting(&server, 2).await;
    for _ in 0..WRITES {
        sleep(PAUSE).await;
        operator
            .set_data(&path, b"of an administrator", None)
            .await
            .unwrap();
    }
    sleep(PAUSE).await;
    assert!(guard.is_held(), "a write caused a loss");
    assert!(
        !writer.is_finished() && !reader.is_finished(),
        "two clients hold the lock"
    );
    let held = token(&guard);
    free(guard).await;
    let next = timeout(SOON, writer).await.unwrap().unwrap();
    assert!(token(&next) > held);
    free(next).await;
    drop(timeout(SOON, reader).await.unwrap().unwrap());
    nothing_left(&server, SOON);
}

/// Curator's `Revoker` asks a holder of another program like this. The holder may answer late or
/// never.
#[tokio::test(flavor = "multi_thread")]
async fn asking_a_foreign_holder_to_revoke_grants_nobody() {
    let server = ZookeeperServer::start().unwrap();
    let (ours, operator) = (client(&server.url()).await, operator(&server).await);
    let mode = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    operator
        .create(
            "/k",
            b"",
            &CreateMode::Persistent.with_acls(Acls::anyone_all()),
        )
        .await
        .unwrap();
    let start = "/k/_c_0f8fad5b-d9cb-469f-a165-70867728950e-lock-";
    let (_, sequence) = operator.create(start, b"10.0.0.1", &mode).await.unwrap();
    let foreign = format!("{start}{sequence}");
    let waiter =
        tokio::spawn(async move { ours.mutex("k").with_ttl(ttl(10)).lock().await.unwrap() });
    until_waiting(&server, 1).await;
    for _ in 0..WRITES {
        sleep(PAUSE).await;
        operator
            .set_data(&foreign, b"__REVOKE__", None)
            .await
            .unwrap();
    }
    sleep(PAUSE).await;
    assert!(!waiter.is_finished(), "two clients hold the lock");
    operator.delete(&foreign, None).await.unwrap();
    free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_revocation_grants_nobody_before_the_deadline() {
    let server = ZookeeperServer::start().unwrap();
    let url = format!("{}?tick=500ms", server.url());
    let (one, other) = (client(&url).await, client(&url).await);
    let guard = one.mutex("k").with_ttl(ttl(4)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(4)).lock().await.unwrap() }
    });
    until("it waits", || members(&server).len() == 2).await;
    // The node is watched by now, and by the waiter.
    sleep(PAUSE).await;
    let held = holder(&other).await;
    other.revoke(&held, Revocation::Graceful).await.unwrap();
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(!guard.is_held(), "two clients hold the lock");
    assert!(token(&next) > token(&guard));
    free(next).await;
}

//! Sessions that expire, and servers that stop answering.

use leasehold_core::LossReason;
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::ZookeeperServer,
    steps::{millis, token},
};
use tokio::time::timeout;

use crate::support::{
    SOON, client, free, lock, members, nothing_left, sessions, ttl, until, until_waiting,
};

#[tokio::test(flavor = "multi_thread")]
async fn holder_learns_its_session_ended_and_locks_again() {
    let server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let (one, other) = (
        client(&server.url_at(proxy.addr())).await,
        client(&server.url()).await,
    );
    let guard = one.mutex("k").with_ttl(ttl(2)).lock().await.unwrap();
    let first = sessions(&server);
    proxy.blackhole(Direction::Both);
    assert_eq!(
        timeout(SOON, guard.lost()).await.unwrap(),
        LossReason::Expired
    );
    let rival = timeout(SOON, other.mutex("k").with_ttl(ttl(2)).lock())
        .await
        .unwrap()
        .unwrap();
    assert!(token(&rival) > token(&guard));
    proxy.heal();
    // Other locks get a new session automatically.
    let again = lock(&one.mutex("other").with_ttl(ttl(2))).await;
    assert!(
        !guard.is_held() && guard.renew().await.is_err(),
        "the old guard is held again"
    );
    assert!(rival.is_held() && again.is_held());
    assert!(
        sessions(&server).is_disjoint(&first),
        "the session was not replaced"
    );
    drop(guard);
    free(again).await;
    // The end of the old guard has not freed the rival's lock.
    assert_eq!(members(&server).len(), 1);
    free(rival).await;
    nothing_left(&server, SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiter_requeues_in_a_new_session_when_its_session_ends() {
    let server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let (far, near) = (
        client(&server.url_at(proxy.addr())).await,
        client(&server.url()).await,
    );
    let guard = near.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    let waiter = tokio::spawn(async move { lock(&far.mutex("k").with_ttl(ttl(2))).await });
    until("it waits", || members(&server).len() == 2).await;
    let first = members(&server);
    proxy.blackhole(Direction::Both);
    until("its session ends", || members(&server).len() == 1).await;
    proxy.heal();
    until("it waits again", || members(&server).len() == 2).await;
    assert_eq!(
        members(&server).intersection(&first).count(),
        1,
        "in another session"
    );
    assert!(!waiter.is_finished() && guard.is_held());
    let held = token(&guard);
    free(guard).await;
    let granted = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(token(&granted) > held);
    free(granted).await;
    nothing_left(&server, SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_node_is_reported_as_a_loss_immediately() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server.url()).await;
    let guard = client.mutex("k").with_ttl(ttl(30)).lock().await.unwrap();
    let neighbour = client
        .mutex("neighbour")
        .with_ttl(ttl(30))
        .lock()
        .await
        .unwrap();
    let path = members(&server)
        .into_iter()
        .find(|path| path.starts_with("/k/"))
        .unwrap();
    let operator = zookeeper_client::Client::connect(&server.addr().to_string())
        .await
        .unwrap();
    operator.delete(&path, None).await.unwrap();
    // Well before the session or its next renewal would report it.
    assert_eq!(
        timeout(millis(8_000), guard.lost()).await.unwrap(),
        LossReason::Replaced
    );
    assert!(neighbour.is_held());
    free(neighbour).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_is_sent_away_costs_no_lock_of_its_process() {
    let server = ZookeeperServer::start().unwrap();
    let (one, other) = (client(&server.url()).await, client(&server.url()).await);
    let guard = one.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    let neighbour = other
        .mutex("neighbour")
        .with_ttl(ttl(10))
        .lock()
        .await
        .unwrap();
    let waiter = tokio::spawn({
        let mutex = other.mutex("k").with_ttl(ttl(10));
        async move { mutex.lock().await.unwrap() }
    });
    let place = until_waiting(&server, 1).await.pop_first().unwrap();
    let operator = zookeeper_client::Client::connect(&server.addr().to_string())
        .await
        .unwrap();
    operator.delete(&place, None).await.unwrap();
    until_waiting(&server, 1).await;
    assert!(guard.is_held() && !waiter.is_finished());
    free(guard).await;
    free(timeout(SOON, waiter).await.unwrap().unwrap()).await;
    assert!(neighbour.is_held(), "the session has ended");
    free(neighbour).await;
}

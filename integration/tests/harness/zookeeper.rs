use std::net::SocketAddr;
use std::time::{Duration, Instant};

use leasehold_integration::server::{ZookeeperEnsemble, ZookeeperServer};
use zookeeper_client::{Acls, Client, CreateMode, SessionState};

const PATIENCE: Duration = Duration::from_secs(60);
/// The timeout of a session.
const SESSION: Duration = Duration::from_secs(20);

async fn connect(addr: SocketAddr, session: Duration) -> Client {
    Client::connector()
        .with_session_timeout(session)
        .connect(&addr.to_string())
        .await
        .unwrap()
}

async fn put(client: &Client, path: &str, mode: CreateMode) {
    client
        .create(path, b"v", &mode.with_acls(Acls::anyone_all()))
        .await
        .unwrap();
}

/// Waits until `reached`.
async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !reached().await {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_answers_at_its_address_and_is_gone_when_dropped() {
    let server = ZookeeperServer::start().unwrap();
    let (addr, folder) = (server.addr(), server.folder().to_owned());
    let client = connect(addr, SESSION).await;
    put(&client, "/k", CreateMode::Ephemeral).await;
    assert_eq!(server.mode().unwrap(), "standalone");
    assert_eq!(server.ephemerals().unwrap(), ["/k".to_owned()].into());
    assert!(server.metric("zk_znode_count").unwrap() > 1);
    drop(server);
    assert!(std::net::TcpStream::connect(addr).is_err());
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_paused_server_says_nothing_until_it_is_resumed() {
    let mut server = ZookeeperServer::start().unwrap();
    server.pause().unwrap();
    assert!(server.mode().is_err());
    server.resume().unwrap();
    assert_eq!(server.mode().unwrap(), "standalone");
}

#[tokio::test]
async fn a_killed_server_comes_back_at_its_address_with_its_nodes() {
    let mut server = ZookeeperServer::start().unwrap();
    put(
        &connect(server.addr(), SESSION).await,
        "/k",
        CreateMode::Persistent,
    )
    .await;
    let (addr, pid) = (server.addr(), server.pid());
    server.kill();
    assert_eq!(server.pid(), None);
    server.restart().unwrap();
    assert_eq!(server.addr(), addr);
    assert_ne!(server.pid(), pid);
    assert!(
        connect(addr, SESSION)
            .await
            .check_stat("/k")
            .await
            .unwrap()
            .is_some()
    );
}

#[test]
fn a_start_that_fails_shows_the_log() {
    let error = ZookeeperServer::builder()
        .setting("tickTime", "often")
        .start()
        .unwrap_err();
    assert!(
        error.to_string().contains("NumberFormatException"),
        "{error}"
    );
}

#[tokio::test]
async fn three_servers_elect_another_leader_after_its_death() {
    let mut ensemble = ZookeeperEnsemble::start().unwrap();
    let leader = ensemble.leader().unwrap();
    assert_eq!(ensemble.followers().len(), 2);
    ensemble.member(leader).kill();
    until("another leader", async || {
        ensemble.leader().is_ok_and(|now| now != leader)
    })
    .await;
    ensemble.member(leader).restart().unwrap();
    assert_eq!(ensemble.followers().len(), 2);
}

/// The fault that the locks are tested with: the isolated member continues as before, and its
/// clients' sessions expire without notice.
#[tokio::test]
async fn clients_of_a_cut_off_member_lose_their_sessions() {
    let mut ensemble = ZookeeperServer::builder()
        .sync_limit(40)
        .links()
        .start_members(3)
        .unwrap();
    let (leader, follower) = (ensemble.leader().unwrap(), ensemble.followers()[0]);
    let addr = ensemble.member(follower).addr();
    let inside = connect(addr, Duration::from_secs(2)).await;
    let outside = connect(ensemble.member(leader).addr(), SESSION).await;
    put(&inside, "/k", CreateMode::Ephemeral).await;
    assert!(outside.check_stat("/k").await.unwrap().is_some());

    ensemble.isolate(follower).unwrap();
    until("the session's end", async || {
        outside.check_stat("/k").await.unwrap().is_none()
    })
    .await;
    assert!(
        inside.check_stat("/k").await.unwrap().is_some(),
        "reads are no longer answered"
    );
    assert_eq!(inside.state(), SessionState::SyncConnected);
    assert_eq!(ensemble.member(follower).mode().unwrap(), "follower");

    ensemble.rejoin(follower).unwrap();
    until("the news", async || inside.state() == SessionState::Expired).await;
    ensemble.wait_until_serving().unwrap();
}

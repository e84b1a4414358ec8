//! Clients created while their server is down, health checks, and draining.

use std::error::Error as _;

use leasehold::{ErrorKind, LockClient, LockGuard, Mutex, Result, Ttl};
use leasehold_integration::{
    panics::nothing_panicked,
    server::{
        EtcdCluster, Persistence, PostgresServer, RedisServer, RedlockServers, ZookeeperServer,
    },
    steps::{SOON, is_a_fault, millis},
};
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

/// Longer than the start of any server, and at most ZooKeeper's longest session.
const TTL: u64 = 40_000;

fn is_unavailable<T>(outcome: Result<T>) {
    let Err(error) = outcome else {
        panic!("a server that is down has answered")
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    // The error of a quorum lists several causes in its message.
    assert!(
        error.source().is_some() || error.to_string().contains("3 of 3 unavailable:"),
        "without a cause: {error}"
    );
}

/// Creates a client of a server that is down. `start` starts the server, and `kill` kills it.
async fn serves_once_it_is_up<S>(
    url: &str,
    ttl: u64,
    server: &mut S,
    start: impl Fn(&mut S),
    kill: impl Fn(&mut S),
) {
    let ttl = Ttl::from_millis(ttl).unwrap();
    let client = leasehold::ConnectOptions::new()
        .with_ttl(ttl)
        .with_label("test")
        .connect_lazily(url)
        .unwrap();
    assert!(client.capabilities().provisional);
    is_unavailable(client.mutex("k").try_lock().await);
    is_unavailable(client.inspect("k").await);
    is_unavailable(client.ping().await);

    let mutex = client.mutex("k");
    let waiting = match url.starts_with("redlock") {
        // Restarted servers of a quorum vote only after the largest TTL.
        true => tokio::spawn(granted_at_last(mutex)),
        false => tokio::spawn(async move { mutex.lock().await.unwrap() }),
    };
    sleep(millis(300)).await;
    assert!(!waiting.is_finished(), "the waiter failed before its TTL");
    block_in_place(|| start(server));
    let guard = timeout(SOON * 2, waiting)
        .await
        .expect("the waiter is not granted")
        .unwrap();
    assert_eq!(client.inspect("k").await.unwrap().holders.len(), 1);
    client.ping().await.unwrap();
    let eager = leasehold::ConnectOptions::new()
        .with_ttl(ttl)
        .connect(url)
        .await
        .unwrap();
    eager.ping().await.unwrap();
    assert_eq!(
        format!("{:?}", client.capabilities()),
        format!("{:?}", eager.capabilities())
    );
    assert_eq!(client.to_string(), eager.to_string());

    drains_while_a_lock_is_held(&client, &eager, guard).await;
    client.close().await.unwrap();
    block_in_place(|| kill(server));
    let error = timeout(SOON, eager.ping())
        .await
        .expect("the ping hangs")
        .expect_err("a dead server has answered");
    assert!(is_a_fault(error.kind()), "{error}");
    nothing_panicked();
}

async fn granted_at_last(mutex: Mutex) -> LockGuard {
    loop {
        match mutex.lock().await {
            Ok(guard) => return guard,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
        sleep(millis(50)).await;
    }
}

async fn drains_while_a_lock_is_held(client: &LockClient, rival: &LockClient, guard: LockGuard) {
    let (behind, clone) = (client.mutex("k"), client.clone());
    let behind = tokio::spawn(async move { behind.lock().await.map(drop) });
    let theirs = rival.mutex("theirs").lock().await.unwrap();
    let waiter = client.mutex("theirs");
    let waiter = tokio::spawn(async move { waiter.lock().await.map(drop) });
    sleep(millis(100)).await;
    let mut draining = tokio::spawn(async move { clone.drain().await });
    for sent_away in [behind, waiter] {
        let error = timeout(SOON, sent_away)
            .await
            .expect("the waiter was not refused")
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    assert!(timeout(millis(100), &mut draining).await.is_err());
    assert!(guard.is_held());
    guard.release().await.unwrap();
    timeout(SOON, draining)
        .await
        .expect("the drain does not end")
        .unwrap();
    rival
        .mutex("k")
        .try_lock()
        .await
        .unwrap()
        .expect("the lock was left held")
        .release()
        .await
        .unwrap();
    theirs.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_made_before_redis_serves_once_it_is_up() {
    let mut server = RedisServer::start().unwrap();
    server.kill();
    let url = server.url();
    serves_once_it_is_up(
        &url,
        TTL,
        &mut server,
        |server| server.restart().unwrap(),
        RedisServer::kill,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_made_before_a_quorum_serves_once_it_is_up() {
    let mut servers = RedlockServers::start(3, Persistence::None).unwrap();
    let kill =
        |servers: &mut RedlockServers| servers.servers.iter_mut().for_each(RedisServer::kill);
    kill(&mut servers);
    let url = format!("{}?largest-ttl=2s", servers.url());
    let start = |servers: &mut RedlockServers| {
        servers
            .servers
            .iter_mut()
            .for_each(|server| server.restart().unwrap());
    };
    serves_once_it_is_up(&url, 2_000, &mut servers, start, kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_made_before_etcd_serves_once_it_is_up() {
    let mut cluster = EtcdCluster::start().unwrap();
    cluster.member(0).kill();
    let url = cluster.url();
    let start = |cluster: &mut EtcdCluster| cluster.member(0).restart().unwrap();
    serves_once_it_is_up(&url, TTL, &mut cluster, start, |cluster| {
        cluster.member(0).kill();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_made_before_zookeeper_serves_once_it_is_up() {
    let mut server = ZookeeperServer::start().unwrap();
    server.kill();
    let url = server.url();
    serves_once_it_is_up(
        &url,
        TTL,
        &mut server,
        |server| server.restart().unwrap(),
        ZookeeperServer::kill,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_made_before_postgres_serves_once_it_is_up() {
    let mut server = PostgresServer::start().unwrap();
    server.kill();
    let url = server.url();
    serves_once_it_is_up(
        &url,
        TTL,
        &mut server,
        |server| server.restart().unwrap(),
        PostgresServer::kill,
    )
    .await;
}

#[tokio::test]
async fn a_ping_of_a_quorum_names_the_servers_that_do_not_answer() {
    let mut servers = RedlockServers::start(3, Persistence::None).unwrap();
    let client = leasehold::connect(&servers.url()).await.unwrap();
    let silent = |pong: &leasehold::Pong| -> Vec<bool> {
        pong.nodes
            .iter()
            .map(|node| node.problem.is_some())
            .collect()
    };
    assert_eq!(silent(&client.ping().await.unwrap()), [false, false, false]);
    let addresses: Vec<_> = servers
        .servers
        .iter()
        .map(|server| server.addr().to_string())
        .collect();
    servers.servers[0].kill();
    let pong = client.ping().await.unwrap();
    assert_eq!(silent(&pong), [true, false, false]);
    assert!(pong.nodes[0].endpoint.contains(&addresses[0]), "{pong:?}");
    servers.servers[1].kill();
    let error = client.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(
        text.contains(&addresses[0])
            && text.contains(&addresses[1])
            && !text.contains(&addresses[2]),
        "{text}"
    );
}

/// A typed error, and not a panic of a driver.
#[test]
fn a_runtime_without_a_timer_is_refused_by_every_backend() {
    let without = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for url in [
        "redis://127.0.0.1:1/",
        "redlock://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/",
        "etcd://127.0.0.1:1/",
        "zookeeper://127.0.0.1:1/",
        "postgres://127.0.0.1:1/db",
    ] {
        let error = without.block_on(leasehold::connect(url)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongRuntime, "{url}: {error}");
        assert!(error.to_string().contains("enable_time"), "{error}");
    }
}

//! Servers that return with older data.

use std::{fs, path::Path};

use leasehold_core::quorum::Provision;
use leasehold_integration::{
    proxy::Proxy,
    server::{Persistence, RedisServer, RedlockServers},
};
use tokio::task::block_in_place;

use crate::support::{
    PATIENT, TTL, client, client_at, eventually, five, not_granted, nothing_left, token, ttl,
    until, url_through, value, ways,
};

/// A holds at 1, 2 and 3, and never reached 4 and 5. Server 3 gets older data. B would have 3, 4
/// and 5.
async fn older_data_does_not_vote(
    mut servers: RedlockServers,
    replace: impl FnOnce(&mut RedisServer),
) {
    let ways = ways(&servers);
    ways[3..].iter().for_each(Proxy::cut);
    let one = client_at(&url_through(&ways, PATIENT)).await;
    let held = one.mutex("k").lock().await.unwrap();
    let other = client(&servers, PATIENT).await;
    block_in_place(|| {
        replace(&mut servers.servers[2]);
        assert!(
            value(&servers.servers[2], ":lh4:mark").is_some(),
            "the data contains no marker"
        );
        assert!(
            value(&servers.servers[2], "k").is_none(),
            "the data contains the lock"
        );
    });
    for _ in 0..20 {
        not_granted(&other, "k").await;
        assert!(held.is_held());
    }
    let before = token(&held);
    drop(held);
    let next = eventually(&other, "k").await;
    assert!(token(&next) > before);
    next.release().await.unwrap();
    block_in_place(|| nothing_left(&servers.servers));
}

async fn durable() -> RedlockServers {
    let servers = RedlockServers::start(5, Persistence::EveryWrite).unwrap();
    let provision = Provision::new(ttl(TTL))
        .with_never_used(true)
        .with_durable(true);
    leasehold::quorum::connect(&servers.url())
        .await
        .unwrap()
        .provision(&provision)
        .await
        .unwrap();
    servers
}

fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_server_with_a_restored_backup_does_not_vote() {
    let servers = durable().await;
    let data = servers.servers[2].folder().join("appendonlydir");
    let backup = tempfile::tempdir().unwrap();
    let backup_data = backup.path().join("data");
    copy(&data, &backup_data);
    older_data_does_not_vote(servers, |server| {
        server.kill();
        copy(&backup_data, &data);
        server.restart().unwrap();
    })
    .await;
}

/// Makes the server a replica of `primary` until it has its data, and then a primary again.
fn follow(server: &RedisServer, primary: &RedisServer) {
    let mut connection = server.connection().unwrap();
    let port = primary.port();
    let () = redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(port)
        .query(&mut connection)
        .unwrap();
    until("the replica is in step", || {
        let info: String = redis::cmd("INFO")
            .arg("replication")
            .query(&mut connection)
            .unwrap();
        info.contains("master_link_status:up")
    });
    let () = redis::cmd("REPLICAOF")
        .arg("NO")
        .arg("ONE")
        .query(&mut connection)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_server_with_the_data_of_another_does_not_vote() {
    let servers = durable().await;
    let other = RedisServer::builder().start().unwrap();
    // The data of server 4, which never had the lock.
    follow(&other, &servers.servers[3]);
    older_data_does_not_vote(servers, |server| follow(server, &other)).await;
}

/// The run id never changes, and the server's own replica had the same marker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_took_back_its_replicas_older_data_does_not_vote() {
    let servers = five(Persistence::None).await;
    let replica = RedisServer::builder().start().unwrap();
    follow(&replica, &servers.servers[2]);
    older_data_does_not_vote(servers, |server| follow(server, &replica)).await;
}

//! Clients that start while a server is faulty.

use leasehold_core::{LockClient, backend::LockBackend, quorum::QuorumBackend};
use leasehold_integration::server::{Persistence, RedisServer, RedlockServers};
use std::sync::Arc;

use crate::support::{PATIENCE, PATIENT, TTL, millis, ttl, value};

fn config(server: &RedisServer, name: &str, value: &str) {
    let mut connection = server.connection().unwrap();
    let () = redis::cmd("CONFIG")
        .arg("SET")
        .arg(name)
        .arg(value)
        .query(&mut connection)
        .unwrap();
}

fn replica_of(server: &RedisServer, host: &str, port: &str) {
    let mut connection = server.connection().unwrap();
    let () = redis::cmd("REPLICAOF")
        .arg(host)
        .arg(port)
        .query(&mut connection)
        .unwrap();
}

/// Opens the quorum again, as a starting program does.
async fn begin(servers: &RedlockServers) -> (Arc<QuorumBackend>, LockClient) {
    let quorum = leasehold::quorum::connect(&format!("{}{PATIENT}", servers.url()))
        .await
        .unwrap();
    let backend: Arc<dyn LockBackend> = quorum.clone();
    (
        quorum,
        LockClient::builder(backend).with_ttl(ttl(TTL)).build(),
    )
}

/// Returns the problem of the last server, as the quorum reports it.
fn problem(quorum: &QuorumBackend) -> Option<String> {
    let nodes = quorum.nodes();
    assert!(
        nodes[..2].iter().all(|node| node.problem.is_none()),
        "{nodes:?}"
    );
    nodes[2].problem.clone()
}

/// Acquires the lock until the last server also holds it.
async fn until_the_last_takes_part(
    quorum: &QuorumBackend,
    client: &LockClient,
    last: &RedisServer,
) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let guard = client.mutex("k").lock().await.unwrap();
        tokio::time::sleep(millis(20)).await;
        let held = value(last, "k").is_some();
        guard.release().await.unwrap();
        if held && problem(quorum).is_none() {
            return;
        }
        assert!(
            std::time::Instant::now() < end,
            "it does not take part: {:?}",
            problem(quorum)
        );
        tokio::time::sleep(millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_begins_although_one_server_has_another_password() {
    let servers = RedlockServers::start(3, Persistence::None).unwrap();
    servers.provision(ttl(TTL)).await.unwrap();
    let last = &servers.servers[2];
    let mut admin = last.connection().unwrap();
    config(last, "requirepass", "another");
    let (quorum, client) = begin(&servers).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let told = problem(&quorum).expect("no problem was reported");
    assert!(
        told.contains("password") && told.contains(&last.addr().to_string()),
        "{told}"
    );
    let () = redis::cmd("CONFIG")
        .arg("SET")
        .arg("requirepass")
        .arg("")
        .query(&mut admin)
        .unwrap();
    until_the_last_takes_part(&quorum, &client, last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_begins_although_one_server_is_a_replica() {
    let servers = RedlockServers::start(3, Persistence::None).unwrap();
    servers.provision(ttl(TTL)).await.unwrap();
    let (last, other) = (&servers.servers[2], RedisServer::start().unwrap());
    replica_of(last, "127.0.0.1", &other.port().to_string());
    let (quorum, client) = begin(&servers).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let told = problem(&quorum).expect("no problem was reported");
    assert!(
        told.contains("replica") && told.contains(&last.addr().to_string()),
        "{told}"
    );
    // The server may have the data of another one now, and votes after the grace period. It is also
    // checked before.
    replica_of(last, "NO", "ONE");
    let end = std::time::Instant::now() + PATIENCE;
    while problem(&quorum).is_some_and(|problem| problem.contains("replica")) {
        assert!(
            std::time::Instant::now() < end,
            "the server was not checked again"
        );
        drop(client.mutex("k").lock().await.unwrap());
        tokio::time::sleep(millis(50)).await;
    }
}

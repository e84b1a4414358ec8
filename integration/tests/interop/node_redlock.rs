//! node-redlock, on one server and on five.

use std::time::Duration;

use leasehold_core::{LockClient, Ttl};
use leasehold_integration::{
    foreign::Foreign,
    server::{Persistence, RedisServer, RedlockServers},
};
use leasehold_redis::RedisBackend;

use crate::rounds;

#[tokio::test(flavor = "multi_thread")]
async fn node_redlock_on_one_server_and_leasehold_exclude_each_other() {
    let server = RedisServer::start().unwrap();
    let client = LockClient::new(RedisBackend::connect(&server.url()).await.unwrap());
    let mut foreign = Foreign::node_redlock(&[server.port()], "item", Duration::from_secs(30))
        .await
        .unwrap();
    rounds::exclude_each_other(&client, "item", &mut foreign).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_redlock_on_five_servers_and_quorum_exclude_each_other() {
    let servers = RedlockServers::start(5, Persistence::None).unwrap();
    servers.provision(Ttl::DEFAULT).await.unwrap();
    let client = LockClient::new(leasehold_redis::redlock(&servers.url()).await.unwrap());
    let ports: Vec<u16> = servers.servers.iter().map(RedisServer::port).collect();
    let mut foreign = Foreign::node_redlock(&ports, "item", Duration::from_secs(30))
        .await
        .unwrap();
    rounds::exclude_each_other(&client, "item", &mut foreign).await;
}

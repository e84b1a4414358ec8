//! node-redlock, on one server and on five.

use std::time::Duration;

use leasehold_core::LockClient;
use leasehold_integration::{foreign::Foreign, server::RedisServer};
use leasehold_redis::RedisBackend;

use crate::rounds;

#[tokio::test(flavor = "multi_thread")]
async fn node_redlock_on_one_server_and_we_exclude_each_other() {
    let server = RedisServer::start().unwrap();
    let client = LockClient::new(RedisBackend::connect(&server.url()).await.unwrap());
    let mut foreign = Foreign::node_redlock(&[server.port()], "item", Duration::from_secs(30)).await.unwrap();
    rounds::exclude_each_other(&client, "item", &mut foreign).await;
}

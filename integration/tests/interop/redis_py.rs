//! redis-py's `Lock`.

use std::time::Duration;

use leasehold_core::LockClient;
use leasehold_integration::{foreign::Foreign, server::shared_redis};
use leasehold_redis::RedisBackend;

use crate::rounds;

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_and_leasehold_exclude_each_other() {
    let server = shared_redis().unwrap();
    let client = LockClient::new(RedisBackend::connect(server.url()).await.unwrap());
    let mut foreign = Foreign::redis_py(server.url(), "interop:redis-py", Duration::from_secs(30))
        .await
        .unwrap();
    rounds::exclude_each_other(&client, "interop:redis-py", &mut foreign).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_that_loses_its_lock_frees_nothing_of_ours() {
    let server = shared_redis().unwrap();
    let client = LockClient::new(RedisBackend::connect(server.url()).await.unwrap());
    let name = "interop:redis-py lost";
    let mut foreign = Foreign::redis_py(server.url(), name, Duration::from_millis(200))
        .await
        .unwrap();
    foreign.lock().await.unwrap();
    let guard = client.mutex(name).lock().await.unwrap();
    assert!(
        !foreign.release().await.unwrap(),
        "released an expired lock"
    );
    assert!(guard.is_held());
    assert!(!foreign.try_lock().await.unwrap());
}

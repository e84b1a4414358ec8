//! kazoo's `Lock`.

use leasehold_core::Released;
use leasehold_integration::{foreign::Foreign, server::ZookeeperServer};

use crate::{
    rounds,
    support::{client, keeps_waiting},
};

#[tokio::test(flavor = "multi_thread")]
async fn kazoo_with_our_pattern_and_leasehold_exclude_each_other() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server, "").await;
    let mut foreign = Foreign::kazoo(server.addr(), "/shop/item", &["lock-"])
        .await
        .unwrap();
    rounds::exclude_each_other(&client, "item", &mut foreign).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kazoo_with_our_readers_pattern_waits_for_them_too() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server, "").await;
    let mut foreign = Foreign::kazoo(server.addr(), "/shop/item", &["lock-", "__READ__"])
        .await
        .unwrap();
    let reader = client.rwlock("item").read().await.unwrap();
    assert!(!foreign.try_lock().await.unwrap());
    foreign.begin_lock().unwrap();
    keeps_waiting(&mut foreign).await;
    assert_eq!(reader.release().await.unwrap(), Released::Freed);
    foreign.holds().await.unwrap();
}

/// The documentation warns that kazoo without this option does not exclude the library.
#[tokio::test(flavor = "multi_thread")]
async fn kazoo_without_the_pattern_does_not_see_us() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server, "").await;
    let mut foreign = Foreign::kazoo(server.addr(), "/shop/item", &[])
        .await
        .unwrap();
    let guard = client.mutex("item").lock().await.unwrap();
    foreign.lock().await.unwrap();
    assert!(guard.is_held());
}

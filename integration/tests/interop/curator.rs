//! Curator's `InterProcessMutex` and `InterProcessReadWriteLock`.

use leasehold_core::Released;
use leasehold_integration::{foreign::Foreign, server::ZookeeperServer, steps::SOON};
use tokio::time::{sleep, timeout};

use crate::{
    rounds,
    support::{A_WHILE, client, keeps_waiting, queued},
};

#[tokio::test(flavor = "multi_thread")]
async fn curators_mutex_and_leasehold_exclude_each_other() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server, "").await;
    let mut foreign = Foreign::curator(server.addr(), "mutex", "/shop/item")
        .await
        .unwrap();
    rounds::exclude_each_other(&client, "item", &mut foreign).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curators_read_write_locks_and_ours_exclude_each_other() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server, "?exclusive=readwrite").await;
    for kind in ["write", "read"] {
        let name = format!("item {kind}");
        let mut foreign = Foreign::curator(server.addr(), kind, &format!("/shop/{name}"))
            .await
            .unwrap();
        rounds::exclude_each_other(&client, &name, &mut foreign).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curators_readers_and_ours_share_and_keep_writers_of_both_out() {
    let server = ZookeeperServer::start().unwrap();
    let client = client(&server, "?exclusive=readwrite").await;
    let lock = client.rwlock("item");
    let mut reader = Foreign::curator(server.addr(), "read", "/shop/item")
        .await
        .unwrap();
    let mut writer = Foreign::curator(server.addr(), "write", "/shop/item")
        .await
        .unwrap();

    reader.lock().await.unwrap();
    let ours = lock.try_read().await.unwrap().unwrap();
    assert!(lock.try_write().await.unwrap().is_none());
    assert!(!writer.try_lock().await.unwrap());
    assert!(reader.release().await.unwrap());
    // A reader of the library excludes Curator's writers and admits its readers.
    assert!(!writer.try_lock().await.unwrap());
    reader.lock().await.unwrap();
    assert!(reader.release().await.unwrap());

    // A waiting writer of Curator is not overtaken by a reader of the library, and is granted next.
    writer.begin_lock().unwrap();
    queued(&server, 2).await;
    keeps_waiting(&mut writer).await;
    assert!(lock.try_read().await.unwrap().is_none());
    assert_eq!(ours.release().await.unwrap(), Released::Freed);
    writer.holds().await.unwrap();

    // A writer of the library is granted after Curator's writer has released.
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.write().await }
    });
    sleep(A_WHILE).await;
    assert!(!waiting.is_finished());
    assert!(writer.release().await.unwrap());
    let ours = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    reader.begin_lock().unwrap();
    keeps_waiting(&mut reader).await;
    assert_eq!(ours.release().await.unwrap(), Released::Freed);
    reader.holds().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_of_curator_and_leasehold_are_served_in_order() {
    let server = ZookeeperServer::start().unwrap();
    let (client, other) = (client(&server, "").await, client(&server, "").await);
    let mut foreign = Foreign::curator(server.addr(), "mutex", "/shop/item")
        .await
        .unwrap();
    let guard = client.mutex("item").lock().await.unwrap();
    foreign.begin_lock().unwrap();
    queued(&server, 2).await;
    let waiting = tokio::spawn(async move { other.mutex("item").lock().await });
    queued(&server, 3).await;
    keeps_waiting(&mut foreign).await;
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    foreign.holds().await.unwrap();
    sleep(A_WHILE).await;
    assert!(!waiting.is_finished(), "the waiter queued later");
    assert!(foreign.release().await.unwrap());
    let granted = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(granted.release().await.unwrap(), Released::Freed);
}

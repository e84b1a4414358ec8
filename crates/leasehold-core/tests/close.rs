//! Closing a client.

mod support;

use leasehold_core::{ErrorKind, LockClient, LossReason};
use support::{settle, two_processes};

#[tokio::test(start_paused = true)]
async fn it_releases_all_sends_waiters_away_and_says_closed_ever_after() {
    let (client, other) = two_processes();
    let held = client.mutex("held").lock().await.unwrap();
    let theirs = other.mutex("theirs").lock().await.unwrap();
    let wait = |client: &LockClient, key: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.mutex(key).lock().await.unwrap_err().kind() })
    };
    let local = wait(&client, "held");
    let remote = wait(&client, "theirs");
    let behind_remote = wait(&client, "theirs");
    settle().await;

    client.close().await.unwrap();
    assert_eq!(held.loss(), Some(LossReason::ClientClosed));
    drop(other.mutex("held").try_lock().await.unwrap());
    for waiter in [local, remote, behind_remote] {
        assert_eq!(waiter.await.unwrap(), ErrorKind::Closed);
    }
    assert_eq!(client.mutex("x").lock().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(client.mutex("x").try_lock().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(client.inspect("x").await.unwrap_err().kind(), ErrorKind::Closed);
    client.close().await.unwrap();
    assert!(other.inspect("theirs").await.unwrap().waiters.is_empty());
    drop((held, theirs));
}

#[test]
fn a_close_on_the_wrong_runtime_is_refused_and_changes_nothing() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = LockClient::new(leasehold_local::MemoryBackend::new());
    let guard = first.block_on(client.mutex("a").lock()).unwrap();
    assert_eq!(second.block_on(client.close()).unwrap_err().kind(), ErrorKind::Runtime);
    assert!(guard.is_held());
    first.block_on(client.close()).unwrap();
    assert!(!guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_dropped_goes_on() {
    let (client, other) = two_processes();
    let held = client.mutex("a").lock().await.unwrap();
    {
        let mut closing = std::pin::pin!(client.close());
        assert!(futures_util::poll!(closing.as_mut()).is_pending());
    }
    settle().await;
    assert_eq!(held.loss(), Some(LossReason::ClientClosed));
    drop(other.mutex("a").try_lock().await.unwrap());
    client.close().await.unwrap();
}

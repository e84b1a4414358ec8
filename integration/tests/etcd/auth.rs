//! Users, and the tokens that the server gives them.

use std::time::Duration;

use leasehold_core::{ErrorKind, LockClient};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::EtcdCluster;
use tokio::time::{sleep, timeout};

use crate::support::{SOON, free, ttl};

const SHOP: &str = "shop:s3cr%3At@";

/// With the user `shop`, whose password is `s3cr:t` and who may use the prefix `shop/`.
fn with_users(cluster: &EtcdCluster) {
    let member = cluster.at(0);
    member.ctl(&["user", "add", "root:root secret"]).unwrap();
    member.ctl(&["user", "grant-role", "root", "root"]).unwrap();
    member.ctl(&["user", "add", "shop:s3cr:t"]).unwrap();
    member.ctl(&["role", "add", "locks"]).unwrap();
    member.ctl(&["role", "grant-permission", "locks", "--prefix=true", "readwrite", "shop/"]).unwrap();
    member.ctl(&["user", "grant-role", "shop", "locks"]).unwrap();
    member.ctl(&["auth", "enable"]).unwrap();
}

async fn connect(cluster: &EtcdCluster, user: &str, prefix: &str) -> leasehold_core::Result<LockClient> {
    let backend = EtcdBackend::connect(&format!("etcd://{user}{}/?prefix={prefix}", cluster.at(0).addr())).await;
    backend.map(LockClient::new)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_needs_the_right_password_and_the_access() {
    let cluster = EtcdCluster::start().unwrap();
    with_users(&cluster);
    for user in ["", "shop:wrong@", "nobody:x@"] {
        let error = connect(&cluster, user, "shop/").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{user}: {error}");
        assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
    }
    let elsewhere = connect(&cluster, SHOP, "other/").await.unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::Denied, "{elsewhere}");
    let client = connect(&cluster, SHOP, "shop/").await.unwrap();
    let guard = client.mutex("k").with_ttl(ttl(2)).lock().await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(guard.is_held());
    free(guard).await;
}

/// The server forgets tokens that were not used for a while, and all of them when it restarts: requests, renewals and waiters
/// go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_expired_is_asked_for_anew() {
    let mut cluster = EtcdCluster::builder().option("--auth-token-ttl", "1").start().unwrap();
    with_users(&cluster);
    let (one, other) =
        (connect(&cluster, SHOP, "shop/").await.unwrap(), connect(&cluster, SHOP, "shop/").await.unwrap());
    // Renewed every 5 s: each time its token has expired.
    let guard = one.mutex("k").with_ttl(ttl(15)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(15)).lock().await.unwrap() }
    });
    sleep(Duration::from_secs(6)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    assert!(guard.remaining() > Duration::from_secs(10), "{:?}: it was not renewed", guard.remaining());
    // Now its token has expired again.
    sleep(Duration::from_secs(3)).await;
    let beside = one.mutex("beside").with_ttl(ttl(15)).lock().await.unwrap();

    cluster.member(0).restart().unwrap();
    free(beside).await;
    assert!(guard.is_held());
    free(guard).await;
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    free(next).await;
}

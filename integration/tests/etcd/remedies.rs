//! Errors that name a remedy.

use leasehold_core::ErrorKind;
use leasehold_etcd::EtcdBackend;

/// Connects to an address without etcd and returns the error message.
async fn refused(url: &str) -> String {
    let error = EtcdBackend::connect(url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let told = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        let says = cause.to_string();
        assert!(!says.contains("Error") && !says.contains('{'), "{says}");
        next = cause.source();
    }
    for noise in ["http", "Error", "{"] {
        assert!(!told.contains(noise), "{noise}: {told}");
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_a_remedy() {
    let told = refused("etcd://127.0.0.1:1/").await;
    assert!(
        told.contains("etcd://127.0.0.1:1 (") && told.contains("onnection refused"),
        "{told}"
    );
    assert_eq!(told.matches("efused").count(), 1, "{told}");
    let told = refused("etcd://nowhere.invalid:1/").await;
    assert!(
        told.contains("nowhere.invalid:1") && told.contains("check the address"),
        "{told}"
    );
    // A port that answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let told = refused(&format!(
        "etcd://{}/?timeout=200ms",
        silent.local_addr().unwrap()
    ))
    .await;
    assert!(
        told.contains("200ms") && told.contains("`timeout`"),
        "{told}"
    );
}

/// Each kind of server answers a request that it does not understand with its own message, or not
/// at all.
#[cfg(all(feature = "postgres", feature = "redis", feature = "zookeeper"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_etcd_is_reported() {
    use leasehold_integration::server::{PostgresServer, RedisServer, ZookeeperServer};
    let (redis, postgres) = (
        RedisServer::start().unwrap(),
        PostgresServer::start().unwrap(),
    );
    let zookeeper = ZookeeperServer::start().unwrap();
    for addr in [redis.addr(), postgres.addr(), zookeeper.addr()] {
        let told = refused(&format!("etcd://{addr}/")).await;
        assert!(
            told.contains("Is it an etcd server") && told.contains(&addr.to_string()),
            "{told}"
        );
    }
}

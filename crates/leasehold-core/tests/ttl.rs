//! TTLs: the valid range, and the default of a client.

mod support;

use std::{sync::Arc, time::Duration};

use leasehold_core::{ErrorKind, LockClient, Ttl};
use leasehold_local::MemoryBackend;
use support::{secs, spy::Spy};

/// A client of a backend that does 10 s at most.
fn limited() -> (Arc<Spy>, LockClient) {
    let spy = Arc::new(Spy::new(MemoryBackend::new()));
    *spy.watched.max_ttl.lock().unwrap() = Some(secs(10));
    let client = LockClient::new(Arc::clone(&spy));
    (spy, client)
}

#[tokio::test]
async fn default_ttl_adapts_to_the_backend() {
    let (_, client) = limited();
    assert_eq!(client.mutex("a").lock().await.unwrap().ttl(), secs(10));
    assert_eq!(
        client.reentrant_owner().lock("b").await.unwrap().ttl(),
        secs(10)
    );
    let unlimited = LockClient::new(MemoryBackend::new());
    assert_eq!(
        unlimited.mutex("a").lock().await.unwrap().ttl(),
        Ttl::DEFAULT
    );
}

#[tokio::test]
async fn explicit_ttl_outside_of_the_range_is_an_error() {
    let (spy, client) = limited();
    let refused = client
        .mutex("a")
        .with_ttl(secs(30))
        .lock()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let client = LockClient::builder(spy).with_ttl(Ttl::DEFAULT).build();
    assert_eq!(
        client.mutex("a").lock().await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[tokio::test]
async fn duration_that_is_no_ttl_is_an_error_when_the_lock_is_used() {
    let client = LockClient::new(MemoryBackend::new());
    let (good, bad) = (Duration::from_millis(1_500), Duration::from_micros(1_500));
    assert_eq!(
        client
            .mutex("a")
            .with_ttl(good)
            .lock()
            .await
            .unwrap()
            .ttl()
            .as_duration(),
        good
    );
    assert_eq!(
        client
            .mutex("a")
            .with_ttl(bad)
            .try_lock()
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        client
            .reentrant_owner()
            .with_ttl(bad)
            .lock("a")
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidInput
    );
    let client = LockClient::builder(MemoryBackend::new())
        .with_ttl(bad)
        .build();
    assert_eq!(
        client.rwlock("a").read().await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

//! A paused server: an outage must not be reported as contention.

use std::{error::Error as _, time::Duration};

use leasehold_core::{Error, ErrorKind};
use leasehold_integration::server::RedisServer;

use crate::support::{client_of, millis};

const TTL: u64 = 20_000;

fn is_an_outage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable | ErrorKind::Indeterminate
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_for_a_stopped_server_fail_and_name_the_cause() {
    let mut server = RedisServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    server.pause().unwrap();
    // Shorter and longer than the response timeout.
    for limit in [millis(300), millis(3_000)] {
        let waits = (0..4).map(|_| {
            let mutex = client.mutex("k");
            tokio::spawn(async move { mutex.lock_timeout(limit).await.map(drop) })
        });
        for waiting in waits.collect::<Vec<_>>() {
            let error = waiting.await.unwrap().unwrap_err();
            assert!(is_an_outage(&error), "{limit:?}: {error:?}");
            let cause = error.source().is_some() || error.to_string().contains("did not answer");
            assert!(cause, "{limit:?}: {error:?}");
        }
    }
    let tried = client.mutex("k").try_lock().await.unwrap_err();
    assert!(is_an_outage(&tried), "{tried:?}");
    server.resume().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn first_attempt_on_a_stopped_server_is_retried_like_others() {
    let mut server = RedisServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    server.pause().unwrap();
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock_timeout(Duration::from_secs(60)).await });
    // Several response timeouts.
    tokio::time::sleep(millis(3_500)).await;
    assert!(!waiting.is_finished(), "the first fault ended the wait");
    server.resume().unwrap();
    waiting
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

//! What the proof of the quorum takes a server for, on a real one.

mod support;

use std::{sync::Arc, time::Duration};

use leasehold_core::{LockBackend, Mode, quorum::Terms};
use support::{Server, granted, key, request, ttl};

const TTL: u64 = 10_000;

/// The model of the quorum has a request that arrives again, behind the renewal, never make the lock end earlier.
#[tokio::test]
async fn a_request_that_arrives_again_after_a_renewal_does_not_shorten_the_lock() {
    let server = Server::start();
    let backend = server.backend().await;
    // As of a node without a mark that may vote at once.
    let terms = Terms { attested: false, largest_ttl: Duration::ZERO };
    for mode in [Mode::Exclusive, Mode::Shared] {
        let name = format!("{mode:?}");
        let left = async || backend.inspect(&key(&name)).await.unwrap().holders[0].expires_in.unwrap();
        let asked = request(&name).with_mode(mode).with_ttl(ttl(TTL)).for_node(terms);
        let lease = granted(&backend, asked.clone()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(left().await < Duration::from_millis(TTL - 250));
        Arc::clone(&lease).renew().await.unwrap();
        let renewed = left().await;
        assert!(renewed > Duration::from_millis(TTL - 250), "{mode:?}: {renewed:?} left after the renewal");
        tokio::time::sleep(Duration::from_millis(300)).await;
        granted(&backend, asked).await;
        let again = left().await;
        assert!(again > Duration::from_millis(TTL - 250), "{mode:?}: {again:?} left after the request came again");
        // The other grant is of the same owner.
        lease.release().await.unwrap();
        assert!(backend.inspect(&key(&name)).await.unwrap().holders.is_empty());
    }
}

//! Requests that were executed and whose answers were lost.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use leasehold_core::LockClient;
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::ZookeeperServer,
    steps::{is_a_fault, millis},
};
use tokio::time::timeout;

use crate::support::{SOON, client, free, members, nothing_left, sessions, ttl, until};

/// The session outlives the test, so that no node expires.
const TTL_SECS: u64 = 40;
const LOST: usize = 100;

/// The server creates the node and the answer is lost, a hundred times in one session. The client
/// continues or gives up. No node without an owner blocks the queue.
#[tokio::test(flavor = "multi_thread")]
async fn lost_replies_to_create_leave_no_orphan_in_a_live_session() {
    let server = ZookeeperServer::builder()
        .setting("maxSessionTimeout", 60_000)
        .start()
        .unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let (far, near) = (
        client(&server.url_at(proxy.addr())).await,
        client(&server.url()).await,
    );
    let mutex = far.mutex("k").with_ttl(ttl(TTL_SECS));
    free(mutex.lock().await.unwrap()).await;
    let session = sessions(&server);
    let mut created = BTreeSet::new();
    for n in 0..LOST {
        proxy.blackhole(Direction::ServerToClient);
        let locking = tokio::spawn({
            let mutex = mutex.clone();
            async move { mutex.lock().await }
        });
        // The node exists, and the client does not know it.
        until("it is created", || {
            let before = created.len();
            created.extend(members(&server));
            created.len() > before
        })
        .await;
        if n % 2 == 0 {
            locking.abort();
        }
        proxy.disconnect();
        proxy.heal();
        match locking.await {
            Ok(Ok(guard)) => match guard.release().await {
                Ok(_) => {}
                Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
            },
            Ok(Err(error)) => assert!(is_a_fault(error.kind()), "{error:?}"),
            Err(cancelled) => assert!(cancelled.is_cancelled()),
        }
        // The client removes it without any other request for the lock.
        until("it is removed", || members(&server).is_empty()).await;
    }
    assert!(created.len() >= LOST);
    assert_eq!(sessions(&server), session, "the session has changed");
    free(
        near.mutex("k")
            .with_ttl(ttl(TTL_SECS))
            .lock_timeout(SOON)
            .await
            .unwrap()
            .unwrap(),
    )
    .await;
}

/// The direction, and the number of chunks before the cut.
const CUTS: [(Direction, u64); 16] = {
    let mut cuts = [(Direction::ClientToServer, 0); 16];
    let mut n = 0;
    while n < 8 {
        cuts[n] = (Direction::ClientToServer, n as u64);
        cuts[8 + n] = (Direction::ServerToClient, n as u64);
        n += 1;
    }
    cuts
};

/// Runs a client behind its own proxy, which cuts its connection once during an acquisition.
async fn cut_once(
    server: &ZookeeperServer,
    name: &str,
    direction: Direction,
    chunks: u64,
) -> (LockClient, Proxy) {
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client(&server.url_at(proxy.addr())).await;
    let mutex = client.mutex(name).with_ttl(ttl(4));
    // The session exists and has been used.
    free(
        client
            .mutex(format!("{name} before"))
            .with_ttl(ttl(4))
            .lock()
            .await
            .unwrap(),
    )
    .await;
    proxy.cut_after_chunks(direction, chunks);
    match timeout(SOON, mutex.lock()).await.expect("the call hangs") {
        Ok(guard) => {
            if let Err(error) = guard.release().await {
                assert!(is_a_fault(error.kind()), "{name}: {error:?}");
            }
        }
        Err(error) => assert!(is_a_fault(error.kind()), "{name}: {error:?}"),
    }
    (client, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_in_acquisition_leaves_nothing_in_a_live_session() {
    let server = ZookeeperServer::start().unwrap();
    let server = &server;
    let near = &client(&server.url()).await;
    let cuts = CUTS.iter().flat_map(|cut| [(cut, false), (cut, true)]).map(
        |((direction, chunks), contended)| async move {
            let name = format!("{direction:?} {chunks} {contended}");
            if !contended {
                return cut_once(server, &name, *direction, *chunks).await;
            }
            let guard = near.mutex(&*name).with_ttl(ttl(20)).lock().await.unwrap();
            let (cut, ()) = tokio::join!(cut_once(server, &name, *direction, *chunks), async {
                tokio::time::sleep(millis(1_500)).await;
                free(guard).await;
            });
            cut
        },
    );
    // Kept to keep their sessions alive.
    let _clients = join_all(cuts).await;
    nothing_left(server, millis(2 * 4_000));
}

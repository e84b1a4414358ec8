//! The connection is cut at every point of an acquisition, while the session is still renewed.

use std::time::Duration;

use leasehold_core::Released;
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::EtcdCluster,
    steps::SOON,
};
use tokio::time::{sleep, timeout};

use crate::{
    relay::{Fate, Relay},
    support::{client, free, locks, ttl},
};

/// The number of chunks before the cut. An acquisition has fewer.
const POINTS: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn cut_anywhere_leaves_nothing_in_a_renewed_session() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let through = client(&format!(
        "etcd://{}/?timeout=300ms&connect-timeout=300ms",
        proxy.addr()
    ))
    .await;
    let direct = client(&cluster.url()).await;
    // Keeps the session alive during the whole test.
    let kept = through.mutex("kept").with_ttl(ttl(2)).lock().await.unwrap();
    let mut cuts = 0;
    for direction in [Direction::ClientToServer, Direction::ServerToClient] {
        for chunks in 0..POINTS {
            for contended in [false, true] {
                let holder = if contended {
                    Some(direct.mutex("cut").try_lock().await.unwrap().unwrap())
                } else {
                    None
                };
                let before = proxy.counters().connections;
                proxy.cut_after_chunks(direction, chunks);
                let attempt = tokio::spawn({
                    let through = through.clone();
                    async move { through.mutex("cut").with_ttl(ttl(2)).lock().await }
                });
                if let Some(holder) = holder {
                    // The acquisition is waiting or retrying.
                    sleep(Duration::from_millis(50)).await;
                    free(holder).await;
                }
                // A guard is released if there is one, whatever the result.
                drop(timeout(SOON, attempt).await.unwrap().unwrap());
                cuts += proxy.counters().connections - before;
                // Removes the trip-wire if the acquisition needed fewer chunks.
                proxy.heal();
                // The leftover key blocks the lock until a renewal has removed it.
                let next = timeout(SOON, direct.mutex("cut").with_ttl(ttl(2)).lock())
                    .await
                    .unwrap()
                    .unwrap();
                free(next).await;
            }
        }
    }
    assert!(cuts >= POINTS, "only {cuts} reconnections: nothing was cut");
    sleep(ttl(4).as_duration()).await;
    assert!(kept.is_held());
    let left = locks(&cluster);
    assert!(left.len() == 1 && left[0].starts_with("kept/"), "{left:?}");
    assert_eq!(kept.release().await.unwrap(), Released::Freed);
}

/// The backend repeats the request, and the server finds no key.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_whose_answer_was_lost_is_no_loss() {
    let cluster = EtcdCluster::start().unwrap();
    let (relay, addr) = Relay::start(cluster.at(0).addr(), Fate::DeleteLost).await;
    let through = client(&format!("etcd://{addr}/")).await;
    let guard = through.mutex("k").with_ttl(ttl(60)).lock().await.unwrap();
    free(guard).await;
    assert!(relay.is_done(), "no answer was lost");
}

use std::time::{Duration, Instant};

use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::PostgresServer,
};
use tokio::task::block_in_place;

use super::support::{client_of, nothing_left};
use crate::support::{PATIENCE, is_a_fault, millis, nothing_panicked, token, until};

const TTL: u64 = 2000;

/// A loss is told within 50 ms on an idle machine; this one may build something else beside.
/// `is_held` is never late.
const TOLD_WITHIN: Duration = Duration::from_secs(3);

/// Whether the server sees that its connection is gone, and frees at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    ByTheServer,
    ByNobody,
}

/// A holder is cut off. It is lost no later than its deadline, nothing of it succeeds any more, a
/// rival gets the lock, soon and, unless the server has seen it, not before; and after healing all
/// is as before.
async fn cut_off(seen: Seen, how: impl FnOnce(&Proxy)) {
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_of(&server.url_at(proxy.addr()), TTL).await;
    let rival = client_of(&server.url(), TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    // Let it be renewed at least once before.
    tokio::time::sleep(millis(TTL / 2)).await;
    assert!(guard.is_held());

    how(&proxy);
    let cut = Instant::now();
    let mutex = rival.mutex("k");
    let seizing = tokio::spawn(async move { (mutex.lock().await, Instant::now()) });
    let left = guard.remaining();
    let deadline = Instant::now() + left;
    assert!(left <= millis(TTL));
    let lost = tokio::time::timeout(left + TOLD_WITHIN, guard.lost()).await;
    assert!(
        lost.is_ok(),
        "not lost {:?} after its deadline",
        cut.elapsed().saturating_sub(left)
    );
    assert!(!guard.is_held());
    assert!(guard.renew().await.is_err(), "renewed after its loss");
    let begun = Instant::now();
    let error = client
        .mutex("other")
        .try_lock()
        .await
        .expect_err("granted through a cut");
    assert!(is_a_fault(error.kind()), "{error:?}");
    assert!(begun.elapsed() < millis(10_000), "{:?}", begun.elapsed());

    // Renewals may arrive whose answers do not, and each prolongs the session by its TTL.
    let (seized, when) = tokio::time::timeout(millis(2 * TTL + 3000), seizing)
        .await
        .expect("the rival waits on")
        .unwrap();
    let seized = seized.unwrap();
    println!("the rival had it {:?} after the cut", when - cut);
    assert!(
        seen == Seen::ByTheServer || when >= deadline,
        "the rival had it {:?} too early",
        deadline - when
    );
    assert!(token(&seized) > token(&guard));
    proxy.heal();
    let again = client
        .mutex("other")
        .lock_timeout(millis(10_000))
        .await
        .unwrap()
        .unwrap();
    assert!(again.is_held() && seized.is_held() && !guard.is_held());
    again.release().await.unwrap();
    seized.release().await.unwrap();
    drop(guard);
    client
        .mutex("k")
        .lock_timeout(millis(TTL + 3000))
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    block_in_place(|| nothing_left(&server, millis(2 * TTL + 3000)));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn black_holed_holder_is_lost_by_its_deadline_and_recovers() {
    cut_off(Seen::ByNobody, |proxy| proxy.blackhole(Direction::Both)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_without_requests_is_lost_by_its_deadline_and_recovers() {
    cut_off(Seen::ByNobody, |proxy| {
        proxy.blackhole(Direction::ClientToServer);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_without_replies_is_lost_by_its_deadline_and_recovers() {
    cut_off(Seen::ByNobody, |proxy| {
        proxy.blackhole(Direction::ServerToClient);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_with_cut_connections_is_lost_by_deadline_and_recovers() {
    cut_off(Seen::ByTheServer, Proxy::cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_behind_a_cut_is_granted_after_it_heals() {
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let (near, far) = (
        client_of(&server.url(), 10_000).await,
        client_of(&server.url_at(proxy.addr()), 10_000).await,
    );
    let guard = near.mutex("k").lock().await.unwrap();
    let mutex = far.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    // The lock, and the two signs of a writer.
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    block_in_place(|| until("it waits", PATIENCE, || server.psql(locks).unwrap() == "3"));
    // The release happens while the waiter cannot hear of it.
    proxy.disconnect();
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(PATIENCE, waiting).await;
    granted
        .expect("the waiter sleeps through")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    block_in_place(|| nothing_left(&server, millis(9000)));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_request_leaves_no_lock_beyond_a_ttl() {
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_of(&server.url_at(proxy.addr()), TTL).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    proxy.hold(Direction::ClientToServer);
    let error = client
        .mutex("k")
        .try_lock()
        .await
        .expect_err("granted although the request was held up");
    assert!(is_a_fault(error.kind()), "{error:?}");
    proxy.heal();
    block_in_place(|| nothing_left(&server, millis(TTL + 3000)));
    client
        .mutex("k")
        .lock_timeout(millis(TTL + 3000))
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

use std::time::{Duration, Instant};

use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::RedisServer,
};

use crate::support::{client_of, is_a_fault, millis, nothing_left, nothing_panicked, token};

const TTL: u64 = 2000;

/// The limit for reporting a loss. It takes 50 ms on an idle runtime; other tests run beside this
/// one.
const TOLD_WITHIN: Duration = Duration::from_secs(3);

/// Cuts a holder off. Its lock is lost no later than its deadline, and none of its later operations
/// succeeds. A rival acquires the lock after at most two TTLs, because renewals may arrive whose
/// answers do not. After healing, everything works as before.
async fn cut_off(how: impl FnOnce(&Proxy) + Send + 'static) {
    // Spawned, because the check for leftovers blocks.
    tokio::spawn(cut_off_alone(how)).await.unwrap();
}

async fn cut_off_alone(how: impl FnOnce(&Proxy)) {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_of(&server.url_at(proxy.addr()), TTL).await;
    let rival = client_of(&server.url(), TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    // The lease is renewed at least once before the cut.
    tokio::time::sleep(millis(TTL / 2)).await;
    assert!(guard.is_held());

    how(&proxy);
    let cut = Instant::now();
    let mutex = rival.mutex("k");
    let seizing = tokio::spawn(async move { mutex.lock().await });
    let left = guard.remaining();
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
    let error = client
        .mutex("k")
        .lock_timeout(millis(300))
        .await
        .expect_err("granted through a cut");
    assert!(is_a_fault(error.kind()), "{error:?}");

    let seized = tokio::time::timeout(millis(2 * TTL + 1000), seizing)
        .await
        .expect("the rival was not granted");
    let seized = seized.unwrap().unwrap();
    assert!(token(&seized) > token(&guard));
    proxy.heal();
    tokio::time::sleep(millis(TTL / 2)).await;
    assert!(seized.is_held() && !guard.is_held());
    let begun = Instant::now();
    seized.release().await.unwrap();
    let again = client
        .mutex("k")
        .lock_timeout(millis(TTL + 1000))
        .await
        .unwrap()
        .unwrap();
    assert!(again.is_held(), "{:?}", begun.elapsed());
    again.release().await.unwrap();
    drop(guard);
    tokio::task::block_in_place(|| nothing_left(&server, millis(2 * TTL + 1000)));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_holder_is_lost_by_its_deadline_and_recovers() {
    tokio::join!(
        cut_off(|proxy| proxy.blackhole(Direction::Both)),
        cut_off(|proxy| proxy.blackhole(Direction::ClientToServer)),
        cut_off(|proxy| proxy.blackhole(Direction::ServerToClient)),
        cut_off(Proxy::cut),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_behind_a_cut_is_notified_after_it_heals() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let (near, far) = (
        client_of(&server.url(), 10_000).await,
        client_of(&server.url_at(proxy.addr()), 10_000).await,
    );
    let guard = near.mutex("k").lock().await.unwrap();
    let mutex = far.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    tokio::time::sleep(millis(200)).await;
    // The waiter cannot receive the notification of this release.
    proxy.disconnect();
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(millis(3000), waiting).await;
    // Well before the waiter's fallback poll, at the end of the lease that it saw.
    granted
        .expect("the waiter was not notified")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_left(&server, millis(1000));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_cut_costs_the_holder_nothing() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let client = client_of(&server.url_at(proxy.addr()), TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(millis(TTL / 4)).await;
        proxy.disconnect();
        assert!(guard.is_held());
    }
    // The client may not have noticed the last cut. The answer to the release is then lost, and the
    // release is retried in the background.
    match guard.release().await {
        Ok(released) => assert_eq!(released, leasehold_core::Released::Freed),
        Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
    }
    nothing_left(&server, millis(1000));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_request_leaves_no_lock_beyond_a_ttl() {
    let server = RedisServer::start().unwrap();
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
        .expect_err("granted although the request was held back");
    assert!(is_a_fault(error.kind()), "{error:?}");
    proxy.heal();
    nothing_left(&server, millis(TTL + 500));
    client
        .mutex("k")
        .try_lock()
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

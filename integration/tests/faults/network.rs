//! Connections that are cut, silent or slow.

use futures_util::future::join_all;
use leasehold_core::{Clock, Released, SystemClock};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    steps::{is_a_fault, millis, token},
};

use crate::{
    dropped::AtPoll,
    fixture::{Fixture, Route},
    support::{locked, nothing_left, soon, until_waiting},
};

/// When a rival is granted the lock of a holder that is cut off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rival {
    /// Not before the holder knows that it has lost the lock.
    AfterTheLoss,
    /// At once, if the server frees the locks of a connection that is reset.
    AtAnyTime,
}

/// Cuts a holder off. Its lock is lost no later than its deadline, and none of its later operations
/// succeeds. A rival acquires the lock. After healing, everything works as before.
async fn cut_off(fixture: &mut dyn Fixture, rival: Rival, how: impl Fn(&Proxy)) {
    let route = fixture.route();
    let client = fixture.client_at(&route.url).await;
    let near = fixture.client().await;
    let guard = client.mutex("k").lock().await.unwrap();
    // The lease is renewed at least once before the cut.
    tokio::time::sleep(fixture.ttl().as_duration() / 2).await;
    assert!(guard.is_held());

    route.each(&how);
    let latest = SystemClock.now() + fixture.ttl().as_duration();
    let mutex = near.mutex("k");
    let info = guard.info();
    let seizing = tokio::spawn(async move {
        let seized = mutex.lock().await;
        (seized, info.is_held())
    });
    soon("the holder learns of its loss", guard.lost()).await;
    assert!(!guard.is_held());
    assert!(
        guard.deadline().moment() <= latest,
        "the deadline moved without an answer"
    );
    assert!(guard.renew().await.is_err(), "renewed after its loss");
    for key in ["other", "k"] {
        let mutex = client.mutex(key);
        let tried = soon("an attempt ends", mutex.try_lock()).await;
        let error = tried.expect_err("granted through a cut");
        assert!(is_a_fault(error.kind()), "{error:?}");
    }

    let (seized, both) = soon("the rival is granted", seizing).await.unwrap();
    let seized = seized.unwrap();
    assert!(rival == Rival::AtAnyTime || !both, "two holders");
    assert!(token(&seized) > token(&guard));
    route.each(Proxy::heal);
    let again = locked(&client, "other").await;
    assert!(again.is_held() && seized.is_held() && !guard.is_held());
    again.release().await.unwrap();
    assert_eq!(seized.release().await.unwrap(), Released::Freed);
    drop(guard);
    locked(&client, "k").await.release().await.unwrap();
    nothing_left(fixture);
}

pub(crate) async fn black_holed_holder_is_lost_by_its_deadline_and_recovers(
    fixture: &mut dyn Fixture,
) {
    cut_off(fixture, Rival::AfterTheLoss, |proxy| {
        proxy.blackhole(Direction::Both);
    })
    .await;
}

pub(crate) async fn holder_without_requests_is_lost_by_its_deadline_and_recovers(
    fixture: &mut dyn Fixture,
) {
    let swallow = |proxy: &Proxy| proxy.blackhole(Direction::ClientToServer);
    cut_off(fixture, Rival::AfterTheLoss, swallow).await;
}

pub(crate) async fn holder_without_replies_is_lost_by_its_deadline_and_recovers(
    fixture: &mut dyn Fixture,
) {
    let swallow = |proxy: &Proxy| proxy.blackhole(Direction::ServerToClient);
    cut_off(fixture, Rival::AfterTheLoss, swallow).await;
}

/// Cuts the connections with a reset, after which PostgreSQL grants the rival at once.
pub(crate) async fn holder_with_cut_connections_is_lost_by_deadline_and_recovers(
    fixture: &mut dyn Fixture,
) {
    cut_off(fixture, Rival::AtAnyTime, Proxy::cut).await;
}

pub(crate) async fn a_waiter_behind_a_cut_is_granted_after_it_heals(fixture: &mut dyn Fixture) {
    let route = fixture.route();
    let (near, far) = (fixture.client().await, fixture.client_at(&route.url).await);
    let guard = near.mutex("k").lock().await.unwrap();
    let mutex = far.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    until_waiting(&near, 1).await;
    // The waiter cannot receive the notification of this release.
    route.each(Proxy::disconnect);
    guard.release().await.unwrap();
    let granted = soon("the waiter is granted", waiting)
        .await
        .unwrap()
        .unwrap();
    granted.release().await.unwrap();
    nothing_left(fixture);
}

pub(crate) async fn a_short_cut_costs_the_holder_nothing(fixture: &mut dyn Fixture) {
    let route = fixture.route();
    let client = fixture.client_at(&route.url).await;
    // Long enough that a busy machine reconnects and renews in time.
    let ttl = 2 * fixture.ttl().as_duration();
    let guard = client.mutex("k").with_ttl(ttl).lock().await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(millis(1_000)).await;
        route.each(Proxy::disconnect);
        assert!(guard.is_held());
    }
    // The client may not have noticed the last cut. The answer to the release is then lost, and the
    // release is retried in the background.
    match guard.release().await {
        Ok(released) => assert_eq!(released, Released::Freed),
        Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
    }
    nothing_left(fixture);
}

pub(crate) async fn late_request_leaves_no_lock_for_good(fixture: &mut dyn Fixture) {
    let route = fixture.route();
    let client = fixture.client_at(&route.url).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    route.each(|proxy| proxy.hold(Direction::ClientToServer));
    let mutex = client.mutex("k");
    let tried = soon("the attempt ends", mutex.try_lock()).await;
    let error = tried.expect_err("granted although the request was held back");
    assert!(is_a_fault(error.kind()), "{error:?}");
    route.each(Proxy::heal);
    nothing_left(fixture);
    locked(&client, "k").await.release().await.unwrap();
    nothing_left(fixture);
}

/// The point at which a connection is cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Before this poll of the acquisition.
    Poll(u32),
    Chunks(Direction, u64),
    Bytes(Direction, u64),
}

/// The number of acquisitions that are cut at the same time.
const AT_ONCE: usize = 16;

/// Cuts the connection during an acquisition and verifies the outcome. Returns whether it was cut.
async fn cut_within(fixture: &dyn Fixture, route: &Route, cut: Cut, contended: bool) -> bool {
    let key = format!("{cut:?}{contended}");
    let client = fixture.client_at(&route.url).await;
    // A busy machine may take longer to open a session than the default timeout.
    locked(&client, &format!("warm {key}"))
        .await
        .release()
        .await
        .unwrap();
    let rival = fixture.client().await;
    let other = match contended {
        true => Some(locked(&rival, &key).await),
        false => None,
    };
    let mut at_poll = u32::MAX;
    match cut {
        Cut::Poll(polls) => at_poll = polls,
        Cut::Chunks(direction, chunks) => {
            route.each(|proxy| proxy.cut_after_chunks(direction, chunks));
        }
        Cut::Bytes(direction, bytes) => {
            route.each(|proxy| proxy.cut_after_bytes(direction, bytes));
        }
    }
    let mutex = client.mutex(key.as_str());
    let releasing = async {
        if let Some(other) = other {
            tokio::time::sleep(millis(100)).await;
            other.release().await.unwrap();
        }
    };
    let locking = AtPoll {
        inner: Box::pin(mutex.lock_timeout(millis(5_000))),
        polls: at_poll,
        act: Some(|| route.each(Proxy::disconnect)),
    };
    let (outcome, ()) = tokio::join!(soon(&key, locking), releasing);
    match outcome {
        Ok(None) => assert!(contended, "{key}: refused without a holder"),
        Ok(Some(guard)) => {
            assert!(token(&guard) > 0);
            if let Err(error) = guard.release().await {
                assert!(is_a_fault(error.kind()), "{key}: {error:?}");
            }
        }
        Err(error) => assert!(is_a_fault(error.kind()), "{key}: {error:?}"),
    }
    locked(&rival, &key).await.release().await.unwrap();
    let tripped = route.proxies.iter().any(|proxy| proxy.counters().trips > 0);
    // The servers have few connections.
    drop((client.close().await, rival.close().await));
    tripped
}

pub(crate) async fn cut_anywhere_in_acquisition_leaves_no_lock_and_no_waiter(
    fixture: &mut dyn Fixture,
) {
    let both = [Direction::ClientToServer, Direction::ServerToClient];
    let polls = (0..8).map(Cut::Poll);
    let chunks = both
        .into_iter()
        .flat_map(|direction| (0..8).map(move |chunks| Cut::Chunks(direction, chunks)));
    let bytes = both.into_iter().flat_map(|direction| {
        (1..400)
            .step_by(20)
            .map(move |bytes| Cut::Bytes(direction, bytes))
    });
    let points: Vec<_> = polls
        .chain(chunks)
        .chain(bytes)
        .flat_map(|cut| [(cut, false), (cut, true)])
        .collect();
    let mut cuts = 0;
    for some in points.chunks(AT_ONCE) {
        let routes: Vec<_> = some.iter().map(|_| fixture.route()).collect();
        let running = some
            .iter()
            .zip(&routes)
            .map(|((cut, contended), route)| cut_within(fixture, route, *cut, *contended));
        cuts += join_all(running)
            .await
            .into_iter()
            .filter(|cut| *cut)
            .count();
    }
    assert!(
        cuts >= 24,
        "only {cuts} of {} connections were cut",
        points.len()
    );
    nothing_left(fixture);
}

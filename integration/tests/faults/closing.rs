//! Clients that are closed or dropped with operations in progress.

use std::time::Duration;

use futures_util::future::join_all;
use leasehold_core::{ErrorKind, Mutex};
use leasehold_integration::{
    proxy::Direction,
    steps::{is_a_fault, millis},
};
use tokio::{runtime::Handle, time::sleep};

use crate::{
    fixture::Fixture,
    support::{nothing_left, soon},
};

/// The TTL of locks whose tasks must end long before. A task of a session may end at its next beat,
/// which is within a sixth of the TTL.
const TTL: Duration = Duration::from_secs(120);

/// Waits until no task of this runtime is left.
async fn all_tasks_end() {
    let ended = async {
        while Handle::current().metrics().num_alive_tasks() > 0 {
            sleep(millis(20)).await;
        }
    };
    soon("all tasks end", ended).await;
}

/// Closes a client with so many locks that some releases are batched.
pub(crate) async fn nothing_runs_on_after_a_client_with_many_locks_is_closed(
    fixture: &mut dyn Fixture,
) {
    let client = fixture.client().await;
    let mut held = Vec::new();
    for n in 0..100 {
        let mutex = client.mutex(format!("k{n}")).with_ttl(TTL);
        held.push(mutex.lock().await.unwrap());
    }
    client.close().await.unwrap();
    assert!(held.iter().all(|guard| !guard.is_held()));
    drop((held, client));
    all_tasks_end().await;
    nothing_left(fixture);
}

pub(crate) async fn nothing_runs_on_after_a_client_of_a_dead_server_is_dropped(
    fixture: &mut dyn Fixture,
) {
    let client = fixture.client().await;
    fixture.kill();
    // The client knows now that the connection is lost. It sends no request that it would have to
    // undo.
    client
        .inspect("k")
        .await
        .expect_err("answered without a server");
    let mutexes: Vec<_> = (0..100)
        .map(|n| client.mutex(format!("k{n}")).with_ttl(TTL))
        .collect();
    for outcome in join_all(mutexes.iter().map(Mutex::try_lock)).await {
        assert!(is_a_fault(
            outcome.expect_err("granted without a server").kind()
        ));
    }
    drop((mutexes, client));
    all_tasks_end().await;
}

pub(crate) async fn grant_during_close_is_released_before_close_returns(fixture: &mut dyn Fixture) {
    let route = fixture.route();
    let client = fixture.client_at(&route.url).await;
    let rival = fixture.client().await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    route.each(|proxy| proxy.delay(Direction::ServerToClient, millis(300)));
    let mutex = client.mutex("k");
    let locking = tokio::spawn(async move { mutex.lock().await });
    sleep(millis(100)).await;
    client.close().await.unwrap();
    let outcome = soon("the call ends", locking).await.unwrap();
    let error = outcome.expect_err("granted by a closed client");
    assert_eq!(error.kind(), ErrorKind::Closed);
    let granted = rival.mutex("k").try_lock().await.unwrap();
    granted
        .expect("the lock was left held")
        .release()
        .await
        .unwrap();
    nothing_left(fixture);
}

/// Verifies that closing takes far less than the TTL, for which a release would otherwise be
/// retried.
pub(crate) async fn client_closes_while_server_is_dead_and_releases_fail(
    fixture: &mut dyn Fixture,
) {
    let client = fixture.client().await;
    let (dropped, kept) = (
        client.mutex("dropped").lock().await.unwrap(),
        client.mutex("kept").lock().await.unwrap(),
    );
    fixture.kill();
    drop(dropped);
    sleep(millis(500)).await;
    if let Err(error) = soon("the client is closed", client.close()).await {
        assert!(is_a_fault(error.kind()), "{error:?}");
    }
    assert!(!kept.is_held());
}

//! Checks of the locks that a session has on the server.

use std::sync::atomic::Ordering;

use leasehold_core::{ErrorKind, Released};
use leasehold_integration::{panics::nothing_panicked, server::PostgresServer, steps::SOON};
use leasehold_testkit::{PanickingSubscriber, subscribe};
use tokio::task::block_in_place;

use crate::support::{MINUTE, client_of};

const TTL: u64 = 30_000;

/// A session that cannot list its locks closes its connection, and the server frees all of them.
/// The holder must notice before that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_given_up_is_lost_before_a_rival_is_granted() {
    let server = PostgresServer::start().unwrap();
    let (client, rival) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let guard = client.mutex("k").lock().await.unwrap();
    let mutex = rival.mutex("k");
    // Opening a session lists the locks too.
    rival
        .mutex("other")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    // The check of the server's locks and the next one fail with the session's own `lock_timeout`.
    let mut psql = server.psql_session().unwrap();
    block_in_place(|| {
        psql.ask(
            "BEGIN; LOCK TABLE pg_catalog.pg_locks IN ACCESS EXCLUSIVE MODE",
            SOON,
        )
        .unwrap()
    });
    let seizing = tokio::spawn(async move { mutex.lock_timeout(SOON).await });
    let renewing = guard.renew().await;
    assert_eq!(
        renewing
            .expect_err("renewed without a successful check")
            .kind(),
        ErrorKind::Lost
    );
    assert!(!guard.is_held());
    let seized = seizing.await.unwrap().unwrap().unwrap();
    drop(psql);
    assert!(seized.fencing_token() > guard.fencing_token());
    seized.release().await.unwrap();
    drop(guard);
    nothing_panicked();
}

/// The check of the locks fails, and the logger panics in the task that owns the session's
/// connection.
#[tokio::test]
async fn a_panic_in_the_task_of_a_renewal_is_an_error_and_no_loss() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let mut psql = server.psql_session().unwrap();
    psql.ask(
        "BEGIN; LOCK TABLE pg_catalog.pg_locks IN ACCESS EXCLUSIVE MODE",
        SOON,
    )
    .unwrap();
    let (panics, calls) = PanickingSubscriber::new(None);
    let subscribed = subscribe(panics);
    let renewing = tokio::time::timeout(MINUTE, guard.renew())
        .await
        .expect("the call hangs");
    drop(subscribed);
    assert!(calls.load(Ordering::SeqCst) > 0, "nothing panicked");
    assert_eq!(
        renewing
            .expect_err("renewed without a successful check")
            .kind(),
        ErrorKind::Indeterminate
    );
    psql.ask("COMMIT", SOON).unwrap();
    assert!(guard.is_held());
    guard.renew().await.unwrap();
    client
        .mutex("other")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

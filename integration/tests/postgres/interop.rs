//! Mutual exclusion with `psql`, and so with any SQL client.

use leasehold_core::Released;
use leasehold_integration::{
    panics::nothing_panicked,
    server::{PostgresServer, Psql},
    steps::{SOON, millis},
};
use tokio::task::block_in_place;

use crate::support::client_of;

const TTL: u64 = 3000;
/// Returns the single value of a statement in this session.
fn says(psql: &mut Psql, sql: &str) -> String {
    block_in_place(|| psql.ask(sql, SOON)).unwrap()
}

const KEY: &str = "hashtextextended('item', 0)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_and_a_mutex_exclude_each_other() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let mutex = client.mutex("item");
    let mut psql = server.psql_session().unwrap();

    // psql holds the lock: the library is refused, and waits.
    says(&mut psql, &format!("SELECT pg_advisory_lock({KEY})"));
    assert!(mutex.try_lock().await.unwrap().is_none());
    assert!(client.rwlock("item").try_read().await.unwrap().is_none());
    let waiter = tokio::spawn({
        let mutex = mutex.clone();
        async move { mutex.lock().await.unwrap() }
    });
    tokio::time::sleep(millis(300)).await;
    assert!(!waiter.is_finished());
    assert_eq!(
        says(&mut psql, &format!("SELECT pg_advisory_unlock({KEY})")),
        "t"
    );
    let guard = tokio::time::timeout(SOON, waiter)
        .await
        .expect("the release was not seen")
        .unwrap();

    // The library holds the lock: psql is refused, and waits until the release.
    assert_eq!(
        says(&mut psql, &format!("SELECT pg_try_advisory_lock({KEY})")),
        "f"
    );
    assert_eq!(
        says(
            &mut psql,
            &format!("SELECT pg_try_advisory_lock_shared({KEY})")
        ),
        "f"
    );
    psql.send(&format!(
        "SELECT 'got it' FROM (SELECT pg_advisory_lock({KEY})) AS locked"
    ))
    .unwrap();
    assert!(block_in_place(|| psql.answer(millis(300))).is_err());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert_eq!(block_in_place(|| psql.answer(SOON)).unwrap(), "got it");
    assert_eq!(
        says(&mut psql, &format!("SELECT pg_advisory_unlock({KEY})")),
        "t"
    );
    mutex
        .lock_timeout(SOON)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_and_readers_share_and_keep_writers_out_both_ways() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let lock = client.rwlock("item");
    let mut psql = server.psql_session().unwrap();

    // psql reads: the library can read, and nobody can write.
    says(&mut psql, &format!("SELECT pg_advisory_lock_shared({KEY})"));
    let reader = lock.read_timeout(SOON).await.unwrap().unwrap();
    assert!(client.mutex("item").try_lock().await.unwrap().is_none());
    // The library still reads: nobody else can write.
    assert_eq!(
        says(
            &mut psql,
            &format!("SELECT pg_advisory_unlock_shared({KEY})")
        ),
        "t"
    );
    assert_eq!(
        says(&mut psql, &format!("SELECT pg_try_advisory_lock({KEY})")),
        "f"
    );
    assert_eq!(
        says(
            &mut psql,
            &format!("SELECT pg_try_advisory_lock_shared({KEY})")
        ),
        "t"
    );
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.write().await.unwrap() }
    });
    reader.release().await.unwrap();
    tokio::time::sleep(millis(300)).await;
    assert!(!waiter.is_finished());
    assert_eq!(
        says(
            &mut psql,
            &format!("SELECT pg_advisory_unlock_shared({KEY})")
        ),
        "t"
    );
    let writer = tokio::time::timeout(SOON, waiter)
        .await
        .expect("the release was not seen")
        .unwrap();
    assert_eq!(
        says(
            &mut psql,
            &format!("SELECT pg_try_advisory_lock_shared({KEY})")
        ),
        "f"
    );
    writer.release().await.unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_in_a_transaction_and_a_mutex_exclude_each_other() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let mut psql = server.psql_session().unwrap();
    says(
        &mut psql,
        &format!("BEGIN; SELECT pg_advisory_xact_lock({KEY})"),
    );
    assert!(client.mutex("item").try_lock().await.unwrap().is_none());
    let mutex = client.mutex("item");
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    tokio::time::sleep(millis(300)).await;
    assert!(!waiter.is_finished());
    says(&mut psql, "COMMIT");
    let guard = tokio::time::timeout(SOON, waiter)
        .await
        .expect("the commit was not seen")
        .unwrap();
    guard.release().await.unwrap();
    nothing_panicked();
}

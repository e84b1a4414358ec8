//! Locks on the user's own pool or transaction.

use leasehold_core::{ErrorKind, LockClient};
use leasehold_integration::{
    panics::nothing_panicked,
    server::PostgresServer,
    steps::{SOON, millis},
};
use leasehold_postgres::{KeyScheme, PostgresBackend, PostgresConfig, transaction};
use sqlx::postgres::PgPoolOptions;

use crate::support::client_of;

const TTL: u64 = 3000;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_only_asked_where_it_connects() {
    let server = PostgresServer::start().unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(SOON)
        .connect(&server.url())
        .await
        .unwrap();
    // The pool has no other connection.
    let mut taken = pool.acquire().await.unwrap();
    let client = LockClient::new(
        PostgresBackend::from_pool(&pool, PostgresConfig::default())
            .await
            .unwrap(),
    );
    let guard = client.mutex("k").lock().await.unwrap();
    let sql =
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    assert_eq!(
        sqlx::query_scalar::<_, i64>(sql)
            .fetch_one(&mut *taken)
            .await
            .unwrap(),
        0
    );
    let stranger = "SELECT pg_try_advisory_lock(hashtextextended('k', 0))";
    assert!(
        !sqlx::query_scalar::<_, bool>(stranger)
            .fetch_one(&mut *taken)
            .await
            .unwrap(),
        "the pool holds the lock"
    );
    guard.release().await.unwrap();
    drop(taken);
    // The connection has no lock that its next borrower would inherit.
    let mut next = pool.acquire().await.unwrap();
    assert_eq!(
        sqlx::query_scalar::<_, i64>(sql)
            .fetch_one(&mut *next)
            .await
            .unwrap(),
        0
    );
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_lock_and_lease_exclude_each_other() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect(&server.url())
        .await
        .unwrap();
    let key = KeyScheme::Hash.key_of(b"item").unwrap();

    // The transaction holds the lock: a lease waits for its end.
    let mut sale = pool.begin().await.unwrap();
    transaction::lock(&mut sale, key).await.unwrap();
    assert!(client.mutex("item").try_lock().await.unwrap().is_none());
    let mutex = client.mutex("item");
    let waiting = tokio::spawn(async move { mutex.lock().await.unwrap() });
    tokio::time::sleep(millis(300)).await;
    assert!(!waiting.is_finished());
    sale.rollback().await.unwrap();
    let guard = tokio::time::timeout(SOON, waiting)
        .await
        .expect("the end was not seen")
        .unwrap();

    // A lease holds the lock: a transaction is refused, or waits.
    let mut sale = pool.begin().await.unwrap();
    assert!(!transaction::try_lock(&mut sale, key).await.unwrap());
    assert!(
        !transaction::lock_timeout(&mut sale, key, millis(100))
            .await
            .unwrap()
    );
    // A wait that timed out has not ended the transaction.
    sqlx::query("SELECT 1").execute(&mut *sale).await.unwrap();
    let releasing = async {
        tokio::time::sleep(millis(300)).await;
        guard.release().await.unwrap();
    };
    let (locked, ()) = tokio::join!(transaction::lock(&mut sale, key), releasing);
    locked.unwrap();
    assert!(client.mutex("item").try_lock().await.unwrap().is_none());
    sale.commit().await.unwrap();
    client
        .mutex("item")
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
async fn deadlock_is_retryable_for_one_transaction_only() {
    let server = PostgresServer::builder()
        .setting("deadlock_timeout", "100ms")
        .start()
        .unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(SOON)
        .connect(&server.url())
        .await
        .unwrap();
    let [one, other] =
        [b"one".as_slice(), b"other"].map(|name| KeyScheme::Hash.key_of(name).unwrap());
    let mut both = Vec::new();
    for (first, then) in [(one, other), (other, one)] {
        let mut mine = pool.begin().await.unwrap();
        transaction::lock(&mut mine, first).await.unwrap();
        both.push((mine, then));
    }
    let waiting = both.into_iter().map(|(mut mine, then)| {
        tokio::spawn(async move {
            let locked = transaction::lock(&mut mine, then).await;
            // As the documentation recommends, so that the other transaction is granted the lock.
            if locked.is_ok() {
                mine.commit().await.unwrap();
            } else {
                mine.rollback().await.unwrap();
            }
            locked
        })
    });
    let mut refused = Vec::new();
    for waiting in waiting.collect::<Vec<_>>() {
        let waited = tokio::time::timeout(SOON, waiting)
            .await
            .expect("the deadlock was not detected")
            .unwrap();
        refused.extend(waited.err());
    }
    let [error] = &refused[..] else {
        panic!("one of two must be refused, not {refused:?}")
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(
        error.is_retryable() && error.to_string().contains("run it again"),
        "{error}"
    );
    let mut again = pool.begin().await.unwrap();
    assert!(
        transaction::try_lock(&mut again, one).await.unwrap()
            && transaction::try_lock(&mut again, other).await.unwrap()
    );
    nothing_panicked();
}

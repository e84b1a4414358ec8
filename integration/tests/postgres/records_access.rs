//! The table of the records, as its options, roles and poolers allow access to it.

use std::sync::Arc;

use futures_util::future::join_all;
use leasehold_core::{ErrorKind, Released, backend::LockBackend};
use leasehold_integration::{
    server::{PgBouncer, PoolMode, PostgresServer},
    steps::until,
};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use crate::{
    records::{backend, held, is, long, psql, stored, watched, write},
    support::{HOUR, MINUTE, client_of, holder, lent},
};

/// The names are quoted: also words of SQL and capitals are names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_two_schemas_have_records_of_their_own() {
    let server = PostgresServer::start().unwrap();
    psql(
        &server,
        "CREATE SCHEMA \"Select\"; CREATE SCHEMA \"select\"",
    );
    let of = async |table: &str| backend(&format!("{}?records={table}", server.url())).await;
    let (one, other) = (of("Select.from").await, of("select.FROM").await);
    let lease = held(&one).await;
    write(&lease, 1, "one").await.unwrap();
    // The lock is the same, and only one of them holds it.
    assert_eq!(stored(&other).await, None);
    lease.release().await.unwrap();
    let lease = held(&other).await;
    assert_eq!(write(&lease, 1, "other").await.unwrap(), 1);
    assert_eq!(stored(&one).await, is("one", 1));
    assert_eq!(stored(&other).await, is("other", 1));
    assert_eq!(watched(&one, true).await.record, None);
    let tables = "SELECT string_agg(schemaname || '.' || tablename, ' ' ORDER BY tablename COLLATE \"C\") \
                  FROM pg_tables WHERE schemaname ILIKE 'select'";
    assert_eq!(psql(&server, tables), "select.FROM Select.from");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_a_role_do_not_affect_records() {
    let server = PostgresServer::start().unwrap();
    psql(
        &server,
        "CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop; GRANT CREATE ON DATABASE postgres TO shop; \
         CREATE SCHEMA other; CREATE TABLE other.leasehold_records (id int); \
         GRANT ALL ON SCHEMA other TO shop; \
         ALTER ROLE shop SET search_path = other; \
         ALTER ROLE shop SET default_transaction_read_only = on; \
         ALTER ROLE shop SET default_transaction_isolation = serializable; \
         ALTER ROLE shop SET default_transaction_deferrable = on; \
         ALTER ROLE shop SET idle_session_timeout = '100ms'; \
         ALTER ROLE shop SET bytea_output = escape; \
         ALTER ROLE shop SET DateStyle = 'SQL, DMY'; \
         ALTER ROLE shop SET TimeZone = 'Asia/Kathmandu'; \
         ALTER ROLE shop SET row_security = off",
    );
    let (one, other) = (
        backend(&server.url_as("shop")).await,
        backend(&server.url()).await,
    );
    for version in 1..=3 {
        let lease = held(&one).await;
        let value = format!("{version}");
        assert_eq!(write(&lease, 1, &value).await.unwrap(), version);
        for reader in [&one, &other] {
            let record = watched(reader, true).await.record.unwrap();
            assert_eq!(
                (&record.value[..], record.version),
                (value.as_bytes(), version)
            );
        }
        lease.release().await.unwrap();
        // The server ends the connection that reads; the next read opens it again.
        let reading = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop' \
                       AND application_name = 'leasehold reads'";
        block_in_place(|| until("it is idle", MINUTE, || psql(&server, reading) == "0"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_write_is_retryable_and_loses_no_lock() {
    let server = PostgresServer::start().unwrap();
    let one = backend(&server.url()).await;
    let lease = held(&one).await;
    let beside = one.clone().acquire(long("beside")).await.unwrap();
    write(&lease, 1, "first").await.unwrap();
    let session = block_in_place(|| holder(&server, "k"));
    let mut locker = block_in_place(|| server.psql_session()).unwrap();
    block_in_place(|| locker.ask("BEGIN; LOCK TABLE leasehold_records", MINUTE)).unwrap();
    let writing = {
        let lease = Arc::clone(&lease);
        tokio::spawn(async move { write(&lease, 2, "second").await })
    };
    let cancel = format!(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = {session} AND wait_event_type = 'Lock'"
    );
    block_in_place(|| until("it waits", MINUTE, || psql(&server, &cancel) == "t"));
    let error = writing.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(error.operation(), Some("write_record"));
    block_in_place(|| locker.ask("ROLLBACK", MINUTE)).unwrap();
    assert_eq!(stored(&one).await, is("first", 1));
    assert_eq!(write(&lease, 2, "second").await.unwrap(), 2);
    for lease in [lease, beside] {
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
    }
}

/// The renewal of the session must not wait for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writes_to_a_locked_table_lose_no_lock() {
    const TTL: u64 = 60_000;
    /// With a second each, all writes together take longer than the TTL.
    const WRITES: usize = 80;
    let server = PostgresServer::start().unwrap();
    let url = format!("{}?timeout=1s&connect-timeout=60s", server.url());
    let client = client_of(&url, TTL).await;
    let first = client.mutex("first").lock().await.unwrap();
    while first.write_record("x").await.is_err() {}
    let mut guards = Vec::new();
    while guards.len() < WRITES {
        let mutex = client.mutex(format!("k{}", guards.len()));
        // A busy machine may exceed the time-out.
        guards.extend(mutex.lock().await);
    }
    let mut locker = block_in_place(|| server.psql_session()).unwrap();
    block_in_place(|| locker.ask("BEGIN; LOCK TABLE leasehold_records", MINUTE)).unwrap();
    let writes = guards.iter().map(|guard| guard.write_record("x"));
    for written in join_all(writes).await {
        let error = written.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
    // It waits for at most one of the writes.
    while let Err(error) = first.renew().await {
        assert!(error.is_retryable(), "{error:?}");
    }
    block_in_place(|| locker.ask("ROLLBACK", MINUTE)).unwrap();
    for guard in guards {
        assert!(guard.is_held());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_a_locked_table_leave_no_session_behind() {
    let server = PostgresServer::start().unwrap();
    let writer = backend(&server.url()).await;
    write(&held(&writer).await, 1, "x").await.unwrap();
    let url = format!("{}?timeout=2s&connect-timeout=60s", server.url());
    let client = client_of(&url, HOUR).await;
    let mut locker = block_in_place(|| server.psql_session()).unwrap();
    block_in_place(|| locker.ask("BEGIN; LOCK TABLE leasehold_records", MINUTE)).unwrap();
    for _ in 0..3 {
        let error = client.record("k").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    let readers =
        "SELECT count(*) <= 1 FROM pg_stat_activity WHERE application_name = 'leasehold reads'";
    block_in_place(|| {
        until("at most one is left", MINUTE, || {
            psql(&server, readers) == "t"
        });
    });
    block_in_place(|| locker.ask("ROLLBACK", MINUTE)).unwrap();
    // A busy machine may exceed the time-out.
    while client.record("k").await.is_err() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_kept_through_a_pooler_with_sessions() {
    let server = PostgresServer::start().unwrap();
    let pooler = PgBouncer::start(&server, PoolMode::Session).unwrap();
    let (near, far) = (backend(&server.url()).await, backend(&pooler.url()).await);
    for (round, (writer, reader)) in [(&far, &near), (&near, &far)].into_iter().enumerate() {
        let lease = held(writer).await;
        let reading = watched(reader, true).await;
        assert_eq!(reading.record, None);
        write(&lease, 1, "value").await.unwrap();
        let changed = reading.changed.expect("the server notifies");
        let notified = tokio::time::timeout(MINUTE, changed).await;
        notified.expect("the watcher is notified");
        let record = watched(reader, true).await.record.unwrap();
        assert_eq!(record.version, round as u64 + 1);
        lease.release().await.unwrap();
    }
}

/// A pooler provided a session and then lends its backends out. The session that holds the lock is
/// not the one that executes the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_that_another_backend_answers_writes_nothing() {
    let server = PostgresServer::start().unwrap();
    let pooler = PgBouncer::start(&server, PoolMode::Session).unwrap();
    let client = client_of(
        &format!("{}?timeout=60s&connect-timeout=60s", pooler.url()),
        HOUR,
    )
    .await;
    let guard = client.mutex("k").lock().await.unwrap();
    guard.write_record("first").await.unwrap();
    let ours = block_in_place(|| holder(&server, "k"));
    block_in_place(|| pooler.set_mode(PoolMode::Transaction).unwrap());
    // At the end of the next statement, the backend is available to every client.
    guard.write_record("second").await.unwrap();
    let _borrowers = block_in_place(|| lent(&pooler, ours));
    assert!(guard.is_held());
    let error = guard.write_record("third").await.expect_err("written");
    // The other backend may not have prepared the statement, and then ends the exchange.
    assert!(
        matches!(error.kind(), ErrorKind::Lost | ErrorKind::Indeterminate),
        "{error:?}"
    );
    assert!(!guard.is_held());
    let direct: Arc<PostgresBackend> = backend(&server.url()).await;
    assert_eq!(stored(&direct).await, is("second", 2));
}

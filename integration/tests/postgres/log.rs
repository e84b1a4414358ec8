//! The durability reported for tokens if the server does not permit durable ones.

use leasehold_core::{Fencing, LockClient, backend::LockBackend};
use leasehold_integration::{
    panics::nothing_panicked,
    server::{PostgresBuilder, PostgresServer},
    steps::token,
};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

/// Disables every function that reads or writes the log. On a managed service they fail unless
/// `wal_level` is `logical`.
const REFUSE: &str = "ALTER FUNCTION pg_catalog.pg_current_wal_flush_lsn() RENAME TO flush_lsn; \
     ALTER FUNCTION pg_catalog.pg_current_wal_insert_lsn() RENAME TO insert_lsn; \
     ALTER FUNCTION pg_catalog.pg_logical_emit_message(bool, text, text) RENAME TO emit; \
     CREATE FUNCTION pg_catalog.pg_current_wal_flush_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS \
     $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '55000'; END $$; \
     CREATE FUNCTION pg_catalog.pg_current_wal_insert_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS \
     $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '55000'; END $$; \
     CREATE FUNCTION pg_catalog.pg_logical_emit_message(bool, text, text) RETURNS pg_lsn LANGUAGE plpgsql AS \
     $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '55000'; END $$";

/// Returns a builder for a server with durable tokens, apart from what a test disables.
fn builder() -> PostgresBuilder {
    PostgresServer::builder()
        .durable()
        .setting("allow_system_table_mods", "on")
}

/// Asserts that every mode can be locked with increasing tokens. Returns the reported fencing.
async fn works(url: &str) -> Fencing {
    let backend = PostgresBackend::connect(&format!("{url}?timeout=20s&connect-timeout=20s"))
        .await
        .unwrap();
    let fencing = backend.capabilities().fencing;
    let client = LockClient::new(backend);
    let mut last = 0;
    for _ in 0..3 {
        let guard = client.mutex("k").try_lock().await.unwrap().unwrap();
        assert!(token(&guard) > last);
        last = token(&guard);
        guard.release().await.unwrap();
        client
            .rwlock("shared")
            .try_read()
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
        client
            .semaphore("permits", 2)
            .try_acquire()
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    client.close().await.unwrap();
    fencing
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_refuses_the_log_promises_best_effort_tokens() {
    let server = block_in_place(|| builder().start().unwrap());
    assert_eq!(works(&server.url()).await, Fencing::Durable);
    block_in_place(|| server.psql(REFUSE).unwrap());
    assert_eq!(works(&server.url()).await, Fencing::BestEffort);
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_that_may_not_write_the_log_gets_best_effort_tokens() {
    let server = block_in_place(|| builder().start().unwrap());
    block_in_place(|| {
        server
            .psql("CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop")
            .unwrap()
    });
    assert_eq!(works(&server.url_as("shop")).await, Fencing::Durable);
    let revoke = "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_logical_emit_message(bool, text, text) FROM PUBLIC";
    block_in_place(|| server.psql(revoke).unwrap());
    assert_eq!(works(&server.url_as("shop")).await, Fencing::BestEffort);
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_does_not_sync_promises_best_effort_tokens() {
    let server = block_in_place(|| builder().setting("fsync", "off").start().unwrap());
    assert_eq!(works(&server.url()).await, Fencing::BestEffort);
    nothing_panicked();
}

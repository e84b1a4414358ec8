//! Settings of a role that affect locks.

use leasehold_core::ErrorKind;
use leasehold_integration::{
    panics::nothing_panicked,
    server::PostgresServer,
    steps::{SOON, millis, token},
};
use tokio::task::block_in_place;

use crate::support::{client_of, nothing_left};

const TTL: u64 = 2000;
/// Starts a server with a role that has all required permissions and these settings.
fn server_with_role(settings: &[&str]) -> PostgresServer {
    let server = PostgresServer::start().unwrap();
    server
        .psql("CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop; GRANT ALL ON DATABASE postgres TO shop")
        .unwrap();
    for setting in settings {
        server
            .psql(&format!("ALTER ROLE shop SET {setting}"))
            .unwrap();
    }
    server
}

/// Asserts that two clients lock, wait, hold longer than a TTL, and hand over.
async fn works(settings: &[&str]) {
    let server = block_in_place(|| server_with_role(settings));
    let url = server.url_as("shop");
    let (one, other) = (client_of(&url, TTL).await, client_of(&url, TTL).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let first = token(&guard);
    assert!(other.mutex("k").try_lock().await.unwrap().is_none());
    let mutex = other.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    tokio::time::sleep(millis(TTL + TTL / 2)).await;
    assert!(guard.is_held() && !waiting.is_finished(), "{settings:?}");
    guard.release().await.unwrap();
    let next = tokio::time::timeout(SOON, waiting)
        .await
        .expect("hangs")
        .unwrap()
        .unwrap();
    assert!(token(&next) > first);
    next.release().await.unwrap();
    block_in_place(|| nothing_left(&server, SOON));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_outs_of_a_role_do_not_end_a_lock_or_a_wait() {
    works(&[
        "statement_timeout = '100ms'",
        "lock_timeout = '50ms'",
        "idle_in_transaction_session_timeout = '100ms'",
        "idle_session_timeout = '300ms'",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_with_serializable_default_and_other_path_locks() {
    works(&[
        "default_transaction_isolation = 'serializable'",
        "search_path = ''",
        "timezone = 'Pacific/Chatham'",
        "datestyle = 'German'",
        "bytea_output = 'escape'",
        "standard_conforming_strings = off",
    ])
    .await;
}

/// A crash would lose every commit of the role. `token.rs` tests the effect on tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_commits_asynchronously_locks_all_the_same() {
    works(&["synchronous_commit = off"]).await;
}

/// The sequence is created and used nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_only_reads_by_default_locks_all_the_same() {
    works(&["default_transaction_read_only = on"]).await;
}

/// Returns the SQL in an error message.
fn sql_in(said: &str) -> &str {
    let sql = said
        .split_once("the database: ")
        .and_then(|(_, rest)| rest.split_once("; or "));
    sql.expect("the error contains no SQL").0
}

/// The sequence of the tokens does not exist, and the role may not create it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_without_create_gets_the_sql_to_run_and_then_locks() {
    let server = PostgresServer::start().unwrap();
    block_in_place(|| {
        server
            .psql(
                "CREATE ROLE shop LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC; \
                     REVOKE CREATE ON DATABASE postgres FROM PUBLIC",
            )
            .unwrap();
    });
    let url = server.url_as("shop");
    let client = client_of(&url, TTL).await;
    let error = client
        .mutex("k")
        .lock()
        .await
        .expect_err("granted without a sequence");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let said = error.to_string();
    // A lock without tokens needs no sequence.
    let without = client_of(&format!("{url}?fencing=off"), TTL).await;
    let guard = without.mutex("k").lock().await.unwrap();
    assert_eq!(guard.fencing_token(), None);
    guard.release().await.unwrap();
    block_in_place(|| server.psql(sql_in(&said)).unwrap());
    // The same client works without a restart.
    let guard = client.mutex("k").lock().await.unwrap();
    let first = token(&guard);
    guard.release().await.unwrap();
    assert!(token(&client.mutex("k").lock().await.unwrap()) > first);
    nothing_panicked();
}

/// Connects as `shop` with `sequence=locks.tokens`. Asserts that the error contains SQL with all of
/// `parts` and no other statement, after which locking works.
async fn is_told(server: &PostgresServer, parts: &[&str]) {
    let url = format!("{}?sequence=locks.tokens", server.url_as("shop"));
    let error = client_of(&url, TTL)
        .await
        .mutex("k")
        .lock()
        .await
        .expect_err("granted without permission for the sequence");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let said = error.to_string();
    let sql = sql_in(&said);
    assert_eq!(sql.split("; ").count(), parts.len(), "{said}");
    for part in parts {
        assert!(sql.contains(part), "{part}: {said}");
    }
    block_in_place(|| server.psql(sql).unwrap());
    let client = client_of(&url, TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    assert!(token(&guard) > 0);
    guard.release().await.unwrap();
    client.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_or_forbidden_schema_error_has_working_sql() {
    const SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS \"locks\"";
    const CREATE: &str = "CREATE SEQUENCE IF NOT EXISTS \"locks\".\"tokens\"";
    const ENTER: &str = "GRANT USAGE ON SCHEMA \"locks\" TO \"shop\"";
    const DRAW: &str = "GRANT USAGE ON SEQUENCE \"locks\".\"tokens\" TO \"shop\"";
    let server = block_in_place(|| {
        let server = PostgresServer::start().unwrap();
        server.psql("CREATE ROLE shop LOGIN").unwrap();
        server
    });
    is_told(&server, &[SCHEMA, CREATE, ENTER, DRAW]).await;
    for (lost, parts) in [
        ("REVOKE ALL ON SCHEMA locks FROM shop", [ENTER].as_slice()),
        ("REVOKE ALL ON SEQUENCE locks.tokens FROM shop", &[DRAW]),
        ("DROP SEQUENCE locks.tokens", &[CREATE, DRAW]),
        (
            "DROP SEQUENCE locks.tokens; REVOKE ALL ON SCHEMA locks FROM shop",
            &[CREATE, ENTER, DRAW],
        ),
    ] {
        block_in_place(|| server.psql(lost).unwrap());
        is_told(&server, parts).await;
    }
    nothing_panicked();
}

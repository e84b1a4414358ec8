//! What a role is set to by somebody else.

use std::time::{Duration, Instant};

use leasehold_core::ErrorKind;
use leasehold_integration::server::PostgresServer;
use tokio::task::block_in_place;

use super::support::{client_of, connect, nothing_left};
use crate::support::{millis, nothing_panicked, token};

const TTL: u64 = 2000;
const PATIENCE: Duration = Duration::from_secs(20);

/// A role that may do all that it needs to, with these settings of its own.
fn server_with_role(settings: &[&str]) -> PostgresServer {
    let server = PostgresServer::start().unwrap();
    server
        .psql("CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop; GRANT ALL ON DATABASE postgres TO shop")
        .unwrap();
    for setting in settings {
        server.psql(&format!("ALTER ROLE shop SET {setting}")).unwrap();
    }
    server
}

/// Two clients lock, wait, hold past a TTL, and hand over.
async fn works(settings: &[&str]) {
    let server = block_in_place(|| server_with_role(settings));
    let url = server.url_as("shop");
    let (one, other) = (client_of(&url, TTL).await, client_of(&url, TTL).await);
    let guard = one.mutex("k").lock().await.unwrap();
    let first = token(&guard);
    assert_eq!(other.mutex("k").try_lock().await.unwrap_err().kind(), ErrorKind::Contended);
    let mutex = other.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    tokio::time::sleep(millis(TTL + TTL / 2)).await;
    assert!(guard.is_held() && !waiting.is_finished(), "{settings:?}");
    guard.release().await.unwrap();
    let next = tokio::time::timeout(PATIENCE, waiting).await.expect("hangs").unwrap().unwrap();
    assert!(token(&next) > first);
    next.release().await.unwrap();
    block_in_place(|| nothing_left(&server, millis(2 * TTL)));
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
async fn a_role_whose_transactions_are_serializable_and_whose_path_is_elsewhere_locks_all_the_same() {
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

/// Every commit of it would be lost by a crash. See `token.rs` for what comes of its tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_commits_asynchronously_locks_all_the_same() {
    works(&["synchronous_commit = off"]).await;
}

/// It locks, or is told why not: a role like that can draw no token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_only_reads_locks_or_is_told_why_not() {
    let server = block_in_place(|| server_with_role(&["default_transaction_read_only = on"]));
    let begun = Instant::now();
    let outcome = match connect(&server.url_as("shop")).await {
        Ok(client) => client.mutex("k").lock().await.map(|guard| token(&guard)),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Denied), "{error:?}");
    }
    assert!(begun.elapsed() < PATIENCE);
    nothing_panicked();
}

/// What its tokens need is not there, and it may not make it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_create_nothing_is_told_the_sql_that_another_must_run_and_then_locks() {
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
    let error = match connect(&url).await {
        Ok(client) => client.mutex("k").lock().await.expect_err("there is nothing to draw a token from"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let said = error.to_string();
    // Or does without.
    let without = client_of(&format!("{url}?fencing=off"), TTL).await;
    let guard = without.mutex("k").lock().await.unwrap();
    assert_eq!(guard.fencing_token(), None);
    guard.release().await.unwrap();
    let sql = said.split_once("run: ").and_then(|(_, rest)| rest.split_once("; or ")).map(|(sql, _)| sql.to_owned());
    block_in_place(|| server.psql(&sql.expect("the SQL is told")).unwrap());
    let client = client_of(&url, TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let first = token(&guard);
    guard.release().await.unwrap();
    assert!(token(&client.mutex("k").lock().await.unwrap()) > first);
    nothing_panicked();
}

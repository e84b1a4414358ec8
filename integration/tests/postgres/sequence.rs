//! Existing sequences created by another program.

use leasehold_core::ErrorKind;
use leasehold_integration::{panics::nothing_panicked, server::PostgresServer, steps::token};
use tokio::task::block_in_place;

use crate::support::{client_of, connect};

const TTL: u64 = 3000;

/// How a sequence is created and changed, and the smallest token it may produce after a repair.
const UNFIT: [(&str, u64); 9] = [
    ("CREATE SEQUENCE tokens MINVALUE -5 START -5", 1),
    (
        "CREATE SEQUENCE tokens MINVALUE -5 START -5; SELECT nextval('tokens')",
        1,
    ),
    (
        "CREATE SEQUENCE tokens MINVALUE 0 START 0; SELECT setval('tokens', 41)",
        42,
    ),
    (
        "CREATE SEQUENCE tokens INCREMENT -1; SELECT nextval('tokens')",
        1,
    ),
    ("CREATE SEQUENCE tokens AS smallint INCREMENT -1", 1),
    (
        "CREATE SEQUENCE tokens AS integer; SELECT setval('tokens', 41)",
        42,
    ),
    (
        "CREATE SEQUENCE tokens CYCLE; SELECT setval('tokens', 41)",
        42,
    ),
    (
        "CREATE SEQUENCE tokens CACHE 10; SELECT setval('tokens', 41)",
        42,
    ),
    (
        "CREATE UNLOGGED SEQUENCE tokens MINVALUE -5 INCREMENT 2 CYCLE; SELECT setval('tokens', 41)",
        42,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfit_sequence_is_refused_with_sql_that_repairs_it() {
    let server = PostgresServer::start().unwrap();
    let url = format!("{}?sequence=public.tokens", server.url());
    for (made, least) in UNFIT {
        block_in_place(|| {
            server
                .psql(&format!("DROP SEQUENCE IF EXISTS tokens; {made}"))
                .unwrap()
        });
        let error = connect(&url).await.expect_err(made);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{made}: {error:?}");
        let said = error.to_string();
        let (_, sql) = said
            .split_once("run as its owner: ")
            .unwrap_or_else(|| panic!("{made}: {said}"));
        block_in_place(|| server.psql(sql))
            .unwrap_or_else(|error| panic!("{made}: {sql}: {error}"));
        let client = client_of(&url, TTL).await;
        let guard = client.mutex("k").lock().await.unwrap();
        let first = token(&guard);
        assert_eq!(first, least, "{made}: {sql}");
        guard.release().await.unwrap();
        let guard = client.mutex("k").lock().await.unwrap();
        assert!(token(&guard) > first);
        guard.release().await.unwrap();
        client.close().await.unwrap();
    }
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_create_the_sequence_at_once_all_lock() {
    let server = PostgresServer::start().unwrap();
    for round in 0..5 {
        let url = format!(
            "{}?sequence=public.tokens{round}&timeout=20s&connect-timeout=20s",
            server.url()
        );
        let locks = (0..8).map(async |n| {
            let client = connect(&url).await?;
            client.mutex(format!("k{n}")).lock().await?.release().await
        });
        for locked in futures_util::future::join_all(locks).await {
            locked.unwrap();
        }
    }
    nothing_panicked();
}

//! Inspection needs no write permission and changes nothing.

use leasehold_core::{ErrorKind, Fencing};
use leasehold_integration::{panics::nothing_panicked, server::PostgresServer};
use tokio::task::block_in_place;

use crate::support::client_of;

const TTL: u64 = 10_000;

/// Returns the objects in the database's schemas, without the server's own.
fn objects(server: &PostgresServer) -> String {
    let sql = "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace), \
               (SELECT count(*) FROM pg_namespace)";
    block_in_place(|| server.psql(sql).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_a_new_database_changes_nothing() {
    let server = block_in_place(|| PostgresServer::builder().durable().start().unwrap());
    let before = objects(&server);
    let looking = client_of(&server.url(), TTL).await;
    assert_eq!(looking.capabilities().fencing, Fencing::Durable);
    let seen = looking.inspect("k").await.unwrap();
    assert!(
        seen.holders.is_empty() && seen.waiters.is_empty(),
        "{seen:?}"
    );
    assert_eq!(objects(&server), before);
    // The first client that locks creates the sequence of the tokens.
    looking
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_ne!(objects(&server), before);
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_connect_may_look() {
    let server = block_in_place(|| PostgresServer::start().unwrap());
    block_in_place(|| {
        server
            .psql(
                "CREATE ROLE watcher LOGIN; ALTER ROLE watcher SET default_transaction_read_only = on; \
                 REVOKE ALL ON SCHEMA public FROM PUBLIC; REVOKE CREATE ON DATABASE postgres FROM PUBLIC",
            )
            .unwrap();
    });
    let url = server.url_as("watcher");
    // Inspects before any lock exists.
    let early = client_of(&url, TTL).await;
    assert!(early.inspect("k").await.unwrap().holders.is_empty());
    let holder = client_of(&server.url(), TTL).await;
    let guard = holder.mutex("k").with_label("till 3").lock().await.unwrap();
    let late = client_of(&url, TTL).await;
    for watcher in [&early, &late] {
        let seen = watcher.inspect("k").await.unwrap();
        assert_eq!(
            seen.holders
                .iter()
                .map(|holder| &*holder.label)
                .collect::<Vec<_>>(),
            ["till 3"]
        );
        // Locking fails with a different error than inspection.
        let error = watcher
            .mutex("other")
            .lock()
            .await
            .expect_err("granted without permission for the sequence");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains("GRANT USAGE"), "{error}");
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
    nothing_panicked();
}

//! The settings of sessions that hold locks.

use leasehold_integration::{panics::nothing_panicked, server::PostgresServer};
use tokio::task::block_in_place;

use crate::support::client_of;

/// Replaces a function that runs when a token is drawn, and records the session's settings, which
/// no other session can read.
const SPY: &str = "CREATE TABLE seen (name text, value text); \
     CREATE FUNCTION pg_catalog.nextval(tokens text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN \
     INSERT INTO public.seen SELECT name, current_setting(name) FROM unnest(ARRAY['tcp_keepalives_idle', \
     'tcp_keepalives_interval', 'tcp_keepalives_count', 'tcp_user_timeout', 'client_connection_check_interval', \
     'idle_session_timeout', 'statement_timeout', 'lock_timeout', 'synchronous_commit', 'default_transaction_read_only', \
     'search_path', 'application_name']) AS s(name); \
     RETURN nextval(tokens::regclass); END $$";

/// The server reports the settings of this connection; it asks the kernel for the TCP options.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holding_session_overrides_its_roles_keepalive_settings() {
    let server = PostgresServer::builder()
        .setting("allow_system_table_mods", "on")
        .start()
        .unwrap();
    block_in_place(|| {
        server.psql(SPY).unwrap();
        server
            .psql(
                "CREATE ROLE shop LOGIN SUPERUSER; ALTER ROLE shop SET tcp_keepalives_idle = 7200; \
                 ALTER ROLE shop SET tcp_user_timeout = 0; ALTER ROLE shop SET client_connection_check_interval = 0; \
                 ALTER ROLE shop SET idle_session_timeout = 0; ALTER ROLE shop SET synchronous_commit = off; \
                 ALTER ROLE shop SET default_transaction_read_only = on",
            )
            .unwrap();
    });
    let client = client_of(&server.url_as("shop"), 30_000).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let seen = block_in_place(|| {
        server
            .psql("SELECT name, value FROM seen ORDER BY name")
            .unwrap()
    });
    guard.release().await.unwrap();
    let expected = [
        "application_name|leasehold 30000ms test",
        "client_connection_check_interval|10s",
        "default_transaction_read_only|off",
        "idle_session_timeout|30s",
        "lock_timeout|2s",
        "search_path|pg_catalog",
        "statement_timeout|30s",
        "synchronous_commit|on",
        "tcp_keepalives_count|3",
        "tcp_keepalives_idle|8",
        "tcp_keepalives_interval|8",
        "tcp_user_timeout|30000",
    ];
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
    nothing_panicked();
}

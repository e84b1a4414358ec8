//! A writer that becomes a reader while its connections stay open, as in the fail-over of some
//! managed services.

use leasehold_core::{ErrorKind, LockClient};
use leasehold_integration::{
    held::Held, panics::nothing_panicked, server::PostgresServer, steps::token,
};
use tokio::task::block_in_place;

use crate::support::client_of;

/// Long enough that nothing is renewed automatically.
const TTL: u64 = 600_000;

/// Starts a server on which a table says whether it is a reader. A real demotion would end all
/// connections.
fn server() -> PostgresServer {
    let server = PostgresServer::builder()
        .setting("allow_system_table_mods", "on")
        .start()
        .unwrap();
    server
        .psql(
            "ALTER FUNCTION pg_catalog.pg_is_in_recovery() RENAME TO pg_is_really_in_recovery; \
             CREATE TABLE public.reader (); \
             CREATE FUNCTION pg_catalog.pg_is_in_recovery() RETURNS bool LANGUAGE plpgsql AS \
             $$ BEGIN RETURN EXISTS (SELECT FROM public.reader); END $$",
        )
        .unwrap();
    server
}

fn demote(server: &PostgresServer) {
    block_in_place(|| {
        server
            .psql("INSERT INTO public.reader DEFAULT VALUES")
            .unwrap()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_that_becomes_a_reader_loses_its_holders() {
    let (old, new) = block_in_place(|| (server(), PostgresServer::start().unwrap()));
    let client = client_of(&old.url(), TTL).await;
    let guards = [
        Held::from(client.mutex("k").lock().await.unwrap()),
        Held::from(client.rwlock("shared").read().await.unwrap()),
        Held::from(client.semaphore("permits", 2).acquire().await.unwrap()),
    ];
    guards[0].renew().await.unwrap();
    demote(&old);
    // The new writer has no locks.
    let rival = client_of(&new.url(), TTL)
        .await
        .mutex("k")
        .lock()
        .await
        .unwrap();
    let error = guards[0].renew().await.expect_err("renewed by a reader");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
    assert!(error.to_string().contains("standby"), "{error}");
    assert!(guards.iter().all(|guard| !guard.is_held()) && rival.is_held());
    nothing_panicked();
}

async fn grants(client: &LockClient, mode: &str) -> Result<(), leasehold_core::Error> {
    match mode {
        "exclusive" => client.mutex("free").try_lock().await.map(drop),
        "shared" => client.rwlock("free too").try_read().await.map(drop),
        _ => client.semaphore("permits", 2).try_acquire().await.map(drop),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_with_open_connections_grants_nothing() {
    for options in ["", "?fencing=off"] {
        for mode in ["exclusive", "shared", "permit"] {
            let server = block_in_place(server);
            let client = client_of(&format!("{}{options}", server.url()), TTL).await;
            let guard = client.mutex("k").lock().await.unwrap();
            demote(&server);
            let error = grants(&client, mode)
                .await
                .expect_err("granted by a reader");
            // The address may soon lead to the new writer.
            assert_eq!(
                error.kind(),
                ErrorKind::Unavailable,
                "{mode}{options}: {error:?}"
            );
            assert!(error.to_string().contains("standby"), "{error}");
            assert!(!guard.is_held(), "{mode}{options}");
            block_in_place(|| server.psql("TRUNCATE public.reader").unwrap());
            grants(&client, mode).await.unwrap();
        }
    }
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_survives_a_reader_that_becomes_a_writer_again() {
    let server = block_in_place(server);
    let (holder, waiter) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = crate::support::waiting(&server, &waiter, 1).await;
    demote(&server);
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    block_in_place(|| server.psql("TRUNCATE public.reader").unwrap());
    let next = tokio::time::timeout(crate::support::MINUTE, waiting)
        .await
        .expect("still waiting")
        .unwrap()
        .unwrap();
    assert!(token(&next) > token(&guard));
    next.release().await.unwrap();
    nothing_panicked();
}

//! Poolers and servers, supported and refused.

use leasehold_core::ErrorKind;
use leasehold_integration::{
    panics::nothing_panicked,
    server::{PgBouncer, PoolMode, PostgresServer},
    steps::{SOON, renewed},
};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use crate::support::{client_of, holder, lent, nothing_left};

const TTL: u64 = 10_000;

async fn refused(url: &str) -> String {
    match PostgresBackend::connect(url).await {
        Ok(_) => panic!("{url} was accepted"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
            error.to_string()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_sharing_pooler_is_refused_with_the_remedy() {
    let server = PostgresServer::start().unwrap();
    for mode in [PoolMode::Transaction, PoolMode::Statement] {
        for size in ["1", "2", "20"] {
            let pooler =
                PgBouncer::start_with(&server, mode, &[("default_pool_size", size)]).unwrap();
            let said = refused(&pooler.url()).await;
            assert!(said.contains("session"), "{mode:?}, {size}: {said}");
        }
    }
    block_in_place(|| nothing_left(&server, SOON));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_gives_each_client_a_session_works() {
    let server = PostgresServer::start().unwrap();
    let pooler = PgBouncer::start(&server, PoolMode::Session).unwrap();
    let (near, far) = (
        client_of(&server.url(), TTL).await,
        client_of(&pooler.url(), TTL).await,
    );
    let guard = far.mutex("k").lock().await.unwrap();
    assert!(near.mutex("k").try_lock().await.unwrap().is_none());
    let mutex = near.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    // The lease is also renewed.
    renewed(&guard).await;
    guard.release().await.unwrap();
    let next = tokio::time::timeout(SOON, waiting)
        .await
        .expect("hangs")
        .unwrap()
        .unwrap();
    assert!(far.mutex("k").try_lock().await.unwrap().is_none());
    next.release().await.unwrap();
    far.close().await.unwrap();
    block_in_place(|| nothing_left(&server, SOON));
    nothing_panicked();
}

/// A pooler provided a session and then lends its connections out, as after a change of its
/// configuration. The renewal reaches a backend that does not have the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_another_backend_answers_is_a_loss() {
    let server = PostgresServer::start().unwrap();
    let pooler = PgBouncer::start(&server, PoolMode::Session).unwrap();
    // Long enough that nothing is renewed automatically.
    let client = client_of(
        &format!("{}?timeout=20s&connect-timeout=20s", pooler.url()),
        3_600_000,
    )
    .await;
    let guard = client.mutex("k").lock().await.unwrap();
    let ours = block_in_place(|| holder(&server, "k"));
    block_in_place(|| pooler.set_mode(PoolMode::Transaction).unwrap());
    // At the end of the next statement, the backend is available to every client.
    client
        .mutex("other")
        .try_lock()
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    let _borrowers = block_in_place(|| lent(&pooler, ours));
    assert!(guard.is_held());
    let error = guard.renew().await.expect_err("renewed by another backend");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
    assert!(error.to_string().contains("another backend"), "{error}");
    assert!(!guard.is_held());
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused_and_accepted_once_it_is_promoted() {
    let primary = PostgresServer::start().unwrap();
    let standby = primary.start_standby().unwrap();
    let said = refused(&standby.url()).await;
    assert!(said.contains("standby"), "{said}");
    block_in_place(|| standby.psql("SELECT pg_promote()").unwrap());
    let client = client_of(&standby.url(), TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    block_in_place(|| holder(&standby, "k"));
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_another_encoding_is_refused_with_the_remedy() {
    let server = PostgresServer::start().unwrap();
    for (name, encoding) in [("latin", "LATIN1"), ("ascii", "SQL_ASCII"), ("fit", "UTF8")] {
        let sql =
            format!("CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'");
        block_in_place(|| server.psql(&sql).unwrap());
    }
    let url = |name: &str| format!("{}/{name}", server.url().rsplit_once('/').unwrap().0);
    for (name, encoding) in [("latin", "LATIN1"), ("ascii", "SQL_ASCII")] {
        for options in ["", "?fencing=off"] {
            let said = refused(&format!("{}{options}", url(name))).await;
            assert!(
                said.contains(encoding) && said.contains("ENCODING 'UTF8'"),
                "{said}"
            );
        }
    }
    client_of(&url("fit"), TTL)
        .await
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

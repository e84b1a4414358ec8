use leasehold_core::ErrorKind;
use leasehold_integration::{certificates::Certificates, server::PostgresServer};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use super::support::holder;
use crate::support::client_of;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_held_over_tls_by_who_trusts_the_authority_and_by_nobody_else() {
    let server = PostgresServer::builder().tls().start().unwrap();
    let client = client_of(&server.url(), 3000).await;
    let guard = client.mutex("k").lock().await.unwrap();
    block_in_place(|| {
        let pid = holder(&server, "k");
        assert_eq!(server.psql(&format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {pid}")).unwrap(), "t");
        // Every connection of ours, not only this one.
        let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE client_addr IS NOT NULL AND NOT ssl";
        assert_eq!(server.psql(plain).unwrap(), "0");
    });
    guard.release().await.unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let other = Certificates::generate(elsewhere.path()).unwrap();
    let addr = server.addr();
    let untrusting =
        format!("postgres://postgres@{addr}/postgres?sslmode=verify-full&sslrootcert={}", other.ca().display());
    let error = PostgresBackend::connect(&untrusting).await.expect_err("a stranger's certificate was trusted");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let plain = format!("postgres://postgres@{addr}/postgres?sslmode=disable");
    assert!(PostgresBackend::connect(&plain).await.is_err(), "the server takes TLS alone");
}

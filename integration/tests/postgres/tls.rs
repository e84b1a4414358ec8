use leasehold_core::ErrorKind;
use leasehold_integration::{
    Result, certificates::Certificates, panics::nothing_panicked, server::PostgresServer,
    steps::client_of,
};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use crate::support::holder;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_lock_needs_a_client_that_trusts_the_ca() {
    let server = PostgresServer::builder().tls().start().unwrap();
    let client = client_of(&server.url(), 3000).await;
    let guard = client.mutex("k").lock().await.unwrap();
    block_in_place(|| {
        let pid = holder(&server, "k");
        assert_eq!(
            server
                .psql(&format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {pid}"))
                .unwrap(),
            "t"
        );
        // Every connection of the client, not only this one.
        let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE client_addr IS NOT NULL AND NOT ssl";
        assert_eq!(server.psql(plain).unwrap(), "0");
    });
    guard.release().await.unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let other = Certificates::generate(elsewhere.path()).unwrap();
    let addr = server.addr();
    let untrusting = format!(
        "postgres://postgres@{addr}/postgres?sslmode=verify-full&sslrootcert={}",
        other.ca().display()
    );
    let error = PostgresBackend::connect(&untrusting)
        .await
        .expect_err("another authority's certificate was trusted");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let plain = format!("postgres://postgres@{addr}/postgres?sslmode=disable");
    assert!(
        PostgresBackend::connect(&plain).await.is_err(),
        "the server accepts connections without TLS"
    );
}

/// Connects with each mode that encrypts, trusting the server's authority. `refused` are the modes
/// that reject its certificate, with a part of the reason.
async fn modes(generate: fn(&std::path::Path) -> Result<Certificates>, refused: &[(&str, &str)]) {
    let server = block_in_place(|| {
        PostgresServer::builder()
            .tls_with(generate)
            .start()
            .unwrap()
    });
    let (addr, ca) = (server.addr(), server.certificates().unwrap().ca());
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = format!(
            "postgres://postgres@{addr}/postgres?sslmode={mode}&sslrootcert={}&timeout=20s&connect-timeout=20s",
            ca.display()
        );
        let connected = PostgresBackend::connect(&url).await;
        match refused.iter().find(|(refused, _)| *refused == mode) {
            Some((_, reason)) => {
                let error = connected.expect_err(mode);
                assert_eq!(error.kind(), ErrorKind::Denied, "{mode}: {error:?}");
                assert!(error.to_string().contains(reason), "{mode}: {error}");
            }
            None => drop(connected.unwrap_or_else(|error| panic!("{mode}: {error}"))),
        }
    }
    // As in libpq: the connection is encrypted, and the server is not verified.
    let unverified = format!(
        "postgres://postgres@{addr}/postgres?sslmode=require&timeout=20s&connect-timeout=20s"
    );
    PostgresBackend::connect(&unverified).await.unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sslmode_accepts_a_certificate_that_is_in_order() {
    modes(Certificates::generate, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_certificate_is_refused_with_the_reason() {
    let expired = "expired";
    modes(
        Certificates::generate_expired,
        &[
            ("require", expired),
            ("verify-ca", expired),
            ("verify-full", expired),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_of_another_host_is_refused_by_verify_full() {
    modes(
        |folder| Certificates::generate_for(folder, &["elsewhere.example"]),
        &[("verify-full", "elsewhere.example")],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_of_an_unknown_authority_is_refused() {
    let server = block_in_place(|| PostgresServer::builder().tls().start().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Certificates::generate(elsewhere.path()).unwrap();
    for mode in ["require", "verify-ca", "verify-full"] {
        let (addr, ca) = (server.addr(), other.ca());
        let url = format!(
            "postgres://postgres@{addr}/postgres?sslmode={mode}&sslrootcert={}&connect-timeout=20s",
            ca.display()
        );
        let error = PostgresBackend::connect(&url).await.expect_err(mode);
        assert_eq!(error.kind(), ErrorKind::Denied, "{mode}: {error:?}");
        assert!(
            error.to_string().contains("invalid peer certificate"),
            "{mode}: {error}"
        );
    }
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_tls_is_named_as_one() {
    let server = block_in_place(|| PostgresServer::start().unwrap());
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = format!(
            "postgres://postgres@{}/postgres?sslmode={mode}&connect-timeout=20s",
            server.addr()
        );
        let error = PostgresBackend::connect(&url).await.expect_err(mode);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{mode}: {error:?}");
        assert!(
            error.to_string().contains("offers no TLS"),
            "{mode}: {error}"
        );
    }
    // As in libpq: a unix socket never uses TLS.
    let folder = server.folder().display();
    let socket = format!(
        "postgres://postgres@/postgres?host={folder}&port={}&sslmode=verify-full",
        server.port()
    );
    PostgresBackend::connect(&format!("{socket}&timeout=20s&connect-timeout=20s"))
        .await
        .unwrap();
    nothing_panicked();
}

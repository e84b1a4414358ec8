//! URLs as other programs write them.

use leasehold_core::ErrorKind;
use leasehold_integration::{panics::nothing_panicked, server::PostgresServer};
use tokio::task::block_in_place;

use crate::support::{client_of, connect};

const TTL: u64 = 3000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ipv6_address_in_a_url_is_connected_to() {
    let server = PostgresServer::builder()
        .setting("listen_addresses", "127.0.0.1,::1")
        .access("host all all ::1/128 trust")
        .start()
        .unwrap();
    let client = client_of(
        &format!("postgres://postgres@[::1]:{}/postgres", server.port()),
        TTL,
    )
    .await;
    let guard = client.mutex("k").lock().await.unwrap();
    let endpoint = client.capabilities().endpoint.clone();
    assert_eq!(
        endpoint,
        format!("postgres://[::1]:{}/postgres", server.port())
    );
    let seen = client.inspect("k").await.unwrap().holders;
    assert_eq!(
        seen[0].connection.as_ref().unwrap().address,
        Some(std::net::Ipv6Addr::LOCALHOST.into())
    );
    guard.release().await.unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_libpq_that_ask_for_nothing_special_are_accepted() {
    let server = block_in_place(|| PostgresServer::start().unwrap());
    let url = format!(
        "{}?sslmode=prefer&channel_binding=prefer&target_session_attrs=read-write&application_name=shop&connect_timeout=20\
         &gssencmode=disable&options=-c%20geqo%3Doff",
        server.url()
    );
    let client = client_of(&url, TTL).await;
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    for (asked, named) in [
        ("channel_binding=require", "`channel_binding`"),
        ("target_session_attrs=standby", "primary"),
        ("host=h1,h2", "several hosts"),
        ("passfile=/x", "`passfile`"),
    ] {
        let error = connect(&format!("postgres://u:secret@/?{asked}"))
            .await
            .expect_err(asked);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{asked}: {error:?}");
        assert!(error.to_string().contains(named), "{asked}: {error}");
    }
    nothing_panicked();
}

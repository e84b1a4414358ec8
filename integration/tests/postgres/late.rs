//! The errors when no answer arrives in time.

use leasehold_core::ErrorKind;
use leasehold_integration::{panics::nothing_panicked, server::PostgresServer};
use tokio::task::block_in_place;

use crate::support::{client_of, connect, holder};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_late_names_the_limit_and_the_option() {
    let mut server = block_in_place(|| PostgresServer::start().unwrap());
    for (ttl, options, limit) in [
        (
            60_000,
            "timeout=700ms",
            "within 700ms, the option `timeout`",
        ),
        (3_000, "timeout=20s", "within 750ms, a quarter of the TTL"),
    ] {
        let client = client_of(
            &format!("{}?{options}&connect-timeout=20s", server.url()),
            ttl,
        )
        .await;
        let guard = client.mutex("k").lock().await.unwrap();
        let pid = block_in_place(|| holder(&server, "k"));
        server.pause_backend(pid).unwrap();
        let error = client
            .mutex("other")
            .try_lock()
            .await
            .expect_err("answered by a paused server");
        server.resume_backend(pid).unwrap();
        assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error:?}");
        assert!(error.to_string().contains(limit), "{error}");
        drop(guard.release().await);
    }
    server.pause().unwrap();
    let error = connect(&format!("{}?connect-timeout=300ms", server.url()))
        .await
        .expect_err("answered by a paused server");
    server.resume().unwrap();
    assert!(
        error
            .to_string()
            .contains("within 300ms, the option `connect-timeout`"),
        "{error}"
    );
    nothing_panicked();
}

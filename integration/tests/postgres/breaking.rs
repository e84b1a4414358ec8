//! Revocation: who may revoke a lock, and when it is free.

use std::{sync::Arc, time::Duration};

use leasehold_core::{ErrorKind, LockClient, Revocation, RevokeOutcome};
use leasehold_integration::{
    panics::nothing_panicked,
    server::{PostgresServer, Psql},
    steps::millis,
};
use leasehold_postgres::{PostgresBackend, PostgresConfig};
use tokio::{task::block_in_place, time::timeout};

use crate::support::{HOUR, MINUTE, client_of, holder};

const TTL: u64 = 1500;

fn server() -> PostgresServer {
    let server = PostgresServer::start().unwrap();
    server
        .psql(
            "CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop; CREATE ROLE stranger LOGIN; \
             CREATE ROLE colleague LOGIN IN ROLE shop; CREATE ROLE operator LOGIN IN ROLE pg_signal_backend",
        )
        .unwrap();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_connect_cannot_revoke_a_lock() {
    let server = block_in_place(server);
    let client = client_of(&server.url_as("shop"), TTL).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let stranger = client_of(&format!("{}?fencing=off", server.url_as("stranger")), TTL).await;
    let seen = stranger.inspect("k").await.unwrap().holders;
    for revocation in [Revocation::Graceful, Revocation::Immediate] {
        let error = stranger
            .revoke(&seen[0], revocation)
            .await
            .expect_err("revoked without permission");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains("pg_signal_backend"), "{error}");
    }
    // Setting the revocation mark by hand does not help either.
    let pid = block_in_place(|| holder(&server, "k"));
    let mut psql = block_in_place(|| Psql::connect(&server.url_as("stranger")).unwrap());
    let mark = format!(
        "SELECT pg_advisory_lock_shared(hashtextextended('leasehold revokes {pid} ' || hashtextextended('k', 0), 0)), \
         count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
    );
    block_in_place(|| psql.ask(&mark, MINUTE).unwrap());
    tokio::time::sleep(millis(2 * TTL)).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_may_end_its_session_revoke_a_lock() {
    let server = block_in_place(server);
    let client = client_of(&server.url_as("shop"), TTL).await;
    for role in ["shop", "colleague", "operator", "postgres"] {
        for revocation in [Revocation::Graceful, Revocation::Immediate] {
            let guard = client
                .mutex("k")
                .lock_timeout(MINUTE)
                .await
                .unwrap()
                .unwrap();
            let breaker = client_of(&format!("{}?fencing=off", server.url_as(role)), TTL).await;
            let seen = breaker.inspect("k").await.unwrap().holders;
            let broken = timeout(MINUTE, breaker.revoke(&seen[0], revocation))
                .await
                .expect("the call hangs")
                .unwrap();
            let expected = if revocation == Revocation::Immediate {
                RevokeOutcome::Freed
            } else {
                RevokeOutcome::FreeWithin(Some(Duration::from_millis(TTL)))
            };
            assert_eq!(broken, expected, "{role}");
            timeout(MINUTE, guard.lost())
                .await
                .expect("the lock is still held");
            drop(guard);
        }
    }
    nothing_panicked();
}

/// A session that has noted a graceful revocation holds a marker of it, which is no other lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn immediate_revocation_follows_a_graceful_one() {
    let server = block_in_place(server);
    let (client, operator) = (
        client_of(&server.url(), HOUR).await,
        client_of(&server.url(), HOUR).await,
    );
    let guard = client.mutex("k").lock().await.unwrap();
    let seen = operator.inspect("k").await.unwrap().holders;
    let graceful = async {
        let noted = operator.revoke(&seen[0], Revocation::Graceful).await;
        assert!(
            matches!(noted, Ok(RevokeOutcome::FreeWithin(_))),
            "{noted:?}"
        );
    };
    let renewing = async {
        while guard.renew().await.is_ok() {
            tokio::time::sleep(millis(50)).await;
        }
    };
    timeout(MINUTE, async { tokio::join!(graceful, renewing) })
        .await
        .expect("the revocation hangs");
    let revoked = operator.revoke(&seen[0], Revocation::Immediate).await;
    assert_eq!(revoked.unwrap(), RevokeOutcome::Freed);
    let next = timeout(MINUTE, operator.mutex("k").lock()).await;
    let next = next.expect("the lock is free").unwrap();
    next.release().await.unwrap();
    nothing_panicked();
}

/// Connects an operator with this time-out.
async fn operator(server: &PostgresServer, timeout: Duration) -> LockClient {
    let config = PostgresConfig::default().with_timeout(timeout);
    let options = server.url().parse().unwrap();
    let backend = PostgresBackend::from_options(&options, config).await;
    LockClient::new(Arc::new(backend.unwrap()))
}

/// The server frees the locks of a session that it ends only when the session has seen the signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn immediate_revocation_returns_when_the_lock_is_free() {
    let mut server = block_in_place(server);
    let operator = operator(&server, MINUTE).await;
    let client = client_of(&server.url(), HOUR).await;
    let _guard = client.mutex("k").lock().await.unwrap();
    let seen = operator.inspect("k").await.unwrap().holders;
    let session = block_in_place(|| holder(&server, "k"));
    server.pause_backend(session).unwrap();
    let resuming = async {
        while !is_ended(session) {
            tokio::time::sleep(millis(5)).await;
        }
        // A revocation that did not wait would be over by now.
        tokio::time::sleep(millis(300)).await;
        server.resume_backend(session).unwrap();
    };
    let revoking = operator.revoke(&seen[0], Revocation::Immediate);
    let (revoked, ()) = tokio::join!(
        async {
            let revoked = revoking.await;
            let next = operator.mutex("k").try_lock().await.unwrap();
            next.expect("the lock is free").release().await.unwrap();
            revoked
        },
        resuming
    );
    assert_eq!(revoked.unwrap(), RevokeOutcome::Freed);
}

/// Returns whether this stopped process was sent SIGTERM.
fn is_ended(pid: u32) -> bool {
    const SIGTERM: u64 = 1 << 14;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines();
    let pending = lines.find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() & SIGTERM != 0
}

/// The lock is not free before the process of its session runs again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_says_that_a_stopped_session_is_not_gone_yet() {
    let mut server = block_in_place(server);
    let operator = operator(&server, millis(TTL)).await;
    let client = client_of(&server.url(), HOUR).await;
    let _guard = client.mutex("k").lock().await.unwrap();
    let seen = operator.inspect("k").await.unwrap().holders;
    let session = block_in_place(|| holder(&server, "k"));
    server.pause_backend(session).unwrap();
    let revoked = operator.revoke(&seen[0], Revocation::Immediate).await;
    assert_eq!(revoked.unwrap(), RevokeOutcome::FreeWithin(None));
    assert!(operator.mutex("k").try_lock().await.unwrap().is_none());
    server.resume_backend(session).unwrap();
    let next = timeout(MINUTE, operator.mutex("k").lock()).await;
    next.expect("the lock is free")
        .unwrap()
        .release()
        .await
        .unwrap();
}

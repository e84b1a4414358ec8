//! Passwords that change while clients run.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use leasehold_core::{
    Credentials, CredentialsProvider, Error, ErrorKind, LockClient, Result, Ttl,
    backend::{LockBackend, async_trait},
};
use leasehold_integration::{
    panics::nothing_panicked,
    server::PostgresServer,
    steps::{SOON, millis},
};
use leasehold_postgres::{PostgresBackend, PostgresConfig};
use tokio::task::block_in_place;

use crate::support::{MINUTE, waiting};

/// Supplies these passwords one after the other, and repeats the last one.
#[derive(Debug, Default)]
struct Vault(Mutex<VecDeque<&'static str>>);

impl Vault {
    fn with(passwords: &[&'static str]) -> Arc<Self> {
        let vault = Self::default();
        vault.hand_out(passwords);
        Arc::new(vault)
    }

    fn hand_out(&self, passwords: &[&'static str]) {
        *self.0.lock().unwrap() = passwords.iter().copied().collect();
    }
}

#[async_trait]
impl CredentialsProvider for Vault {
    async fn credentials(&self) -> Result<Credentials> {
        let mut passwords = self.0.lock().unwrap();
        let password = if passwords.len() > 1 {
            passwords.pop_front()
        } else {
            passwords.front().copied()
        };
        Ok(Credentials::new(password.unwrap_or_default()).with_username("shop"))
    }
}

fn server() -> PostgresServer {
    let server = PostgresServer::builder()
        .access("host all shop 127.0.0.1/32 scram-sha-256")
        .start()
        .unwrap();
    server
        .psql("CREATE ROLE shop LOGIN PASSWORD 'first'; GRANT ALL ON SCHEMA public TO shop")
        .unwrap();
    server
}

/// Changes the password and ends the sessions, as an administrator does.
fn rotate(server: &PostgresServer) {
    block_in_place(|| {
        server.psql("ALTER ROLE shop PASSWORD 'second'").unwrap();
        server
            .psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shop'")
            .unwrap();
    });
}

async fn connect(server: &PostgresServer, vault: &Arc<Vault>) -> Result<LockClient> {
    let provider: Arc<dyn CredentialsProvider> = Arc::clone(vault) as _;
    let config = PostgresConfig::default()
        .with_timeout(SOON)
        .with_connect_timeout(SOON);
    let options = server.url().parse().unwrap();
    let backend: Arc<dyn LockBackend> =
        PostgresBackend::from_options(&options, config.with_credentials(provider)).await?;
    // Long enough that nothing is renewed automatically, and that no retry ends early.
    Ok(LockClient::builder(backend)
        .with_ttl(Ttl::from_secs(240).unwrap())
        .build())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_is_asked_for_anew_with_each_connection() {
    let server = block_in_place(server);
    let vault = Vault::with(&["first"]);
    let client = connect(&server, &vault).await.unwrap();
    let guard = client.mutex("k").lock().await.unwrap();
    block_in_place(|| server.psql("ALTER ROLE shop PASSWORD 'second'").unwrap());
    // Existing connections stay open.
    guard.renew().await.unwrap();
    vault.hand_out(&["second"]);
    rotate(&server);
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_password_is_asked_for_once_more() {
    let server = block_in_place(server);
    let vault = Vault::with(&["first"]);
    let client = connect(&server, &vault).await.unwrap();
    rotate(&server);
    // The provider does not know the new password yet when it is first asked.
    vault.hand_out(&["first", "second"]);
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_password_is_denied_at_first_and_retryable_later() {
    let server = block_in_place(server);
    let refused: Error = connect(&server, &Vault::with(&["wrong"]))
        .await
        .expect_err("the server accepts any password");
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
    let vault = Vault::with(&["first"]);
    let client = connect(&server, &vault).await.unwrap();
    rotate(&server);
    let refused = client
        .mutex("k")
        .try_lock()
        .await
        .expect_err("the old password is accepted");
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    vault.hand_out(&["second"]);
    client
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_outlives_a_password_that_is_supplied_late() {
    let server = block_in_place(server);
    let (ours, theirs) = (Vault::with(&["first"]), Vault::with(&["first"]));
    let (holder, waiter) = (
        connect(&server, &theirs).await.unwrap(),
        connect(&server, &ours).await.unwrap(),
    );
    let guard = holder.mutex("k").lock().await.unwrap();
    let waits = waiting(&server, &waiter, 1).await;
    rotate(&server);
    theirs.hand_out(&["second"]);
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    let seized = holder.mutex("k").lock().await.unwrap();
    // The server refuses the connection repeatedly by now.
    tokio::time::sleep(millis(500)).await;
    assert!(!waits.is_finished());
    ours.hand_out(&["second"]);
    seized.release().await.unwrap();
    tokio::time::timeout(MINUTE, waits)
        .await
        .expect("still waiting")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

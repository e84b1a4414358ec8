//! Statements that fail half-way or are answered late. Waiters must be notified of all locks that
//! they have released.

use std::sync::Arc;

use leasehold_core::{LockClient, LockGuard, Released, Result, Ttl, backend::LockBackend};
use leasehold_integration::{
    panics::nothing_panicked,
    proxy::{Direction, Proxy},
    server::PostgresServer,
    steps::{millis, until},
};
use leasehold_postgres::PostgresBackend;
use tokio::task::{JoinHandle, block_in_place};

use crate::support::{HOUR, MINUTE, client_of};

fn waits_for(client: &LockClient, name: &str) -> JoinHandle<Result<LockGuard>> {
    let mutex = client.mutex(name);
    tokio::spawn(async move { mutex.lock().await })
}

fn until_there_are(server: &PostgresServer, locks: &str) {
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    block_in_place(|| until("all wait", MINUTE, || server.psql(sql).unwrap() == locks));
}

async fn is_granted(waiting: JoinHandle<Result<LockGuard>>, what: &str) {
    let granted = tokio::time::timeout(MINUTE, waiting)
        .await
        .unwrap_or_else(|_| panic!("no waiter was notified of {what}"));
    granted.unwrap().unwrap().release().await.unwrap();
}

/// The statement releases the lock before the failing row, and loses the notification. The check of
/// the session's locks releases the one after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_is_notified_of_a_release_in_a_failed_statement() {
    let server = PostgresServer::start().unwrap();
    let holder = client_of(
        &format!("{}?timeout=60s&connect-timeout=20s", server.url()),
        HOUR,
    )
    .await;
    let waiter = client_of(
        &format!(
            "{}?timeout=60s&connect-timeout=20s&fallback-poll-interval=3600s&fencing=off",
            server.url()
        ),
        HOUR,
    )
    .await;
    let before = holder.mutex("before").lock().await.unwrap();
    let after = holder.mutex("after").lock().await.unwrap();
    let waiting = [waits_for(&waiter, "before"), waits_for(&waiter, "after")];
    until_there_are(&server, "6");
    // Tokens run out until this is committed, so an acquisition that needs one waits.
    let mut psql = server.psql_session().unwrap();
    let exhaust = "BEGIN; DO $$ BEGIN EXECUTE format('ALTER SEQUENCE leasehold_tokens MAXVALUE %s', \
                   (SELECT last_value FROM leasehold_tokens)); END $$";
    block_in_place(|| psql.ask(exhaust, MINUTE).unwrap());
    let take = |name: &str| {
        let mutex = holder.mutex(name);
        tokio::spawn(async move { mutex.try_lock().await })
    };
    let taking = take("one");
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                   AND application_name LIKE 'leasehold %'";
    block_in_place(|| {
        until("a statement is under way", MINUTE, || {
            server.psql(blocked).unwrap() == "1"
        });
    });
    // The next request is sent alone, and the later ones are batched behind it.
    let next = take("another");
    tokio::time::sleep(millis(300)).await;
    let other = holder.mutex("other");
    let committing = async {
        tokio::time::sleep(millis(300)).await;
        block_in_place(|| psql.ask("COMMIT", MINUTE).unwrap());
    };
    let (before, other, after, ()) = tokio::join!(
        before.release(),
        other.try_lock(),
        after.release(),
        committing
    );
    for taken in [taking.await.unwrap(), next.await.unwrap(), other] {
        taken.expect_err("a further token was drawn");
    }
    assert_eq!(
        (before.unwrap(), after.unwrap()),
        (Released::Freed, Released::Freed)
    );
    for (waiting, what) in waiting.into_iter().zip(["before", "after"]) {
        is_granted(waiting, what).await;
    }
    nothing_panicked();
}

/// The server does not notify a session of its own actions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_in_the_same_session_hears_of_a_returned_late_grant() {
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let url = format!(
        "{}?timeout=2s&fallback-poll-interval=3600s",
        server.url_at(proxy.addr())
    );
    let backend: Arc<dyn LockBackend> = PostgresBackend::connect(&url).await.unwrap();
    let ttl = Ttl::from_millis(HOUR).unwrap();
    let [taker, waiter] = [Arc::clone(&backend), backend]
        .map(|backend| LockClient::builder(backend).with_ttl(ttl).build());
    let mut psql = server.psql_session().unwrap();
    let mut ask = |sql: &str| block_in_place(|| psql.ask(sql, MINUTE).unwrap());
    ask("SELECT pg_advisory_lock(hashtextextended('k', 0))");
    let waiting = waits_for(&waiter, "k");
    until_there_are(&server, "3");
    // This sends no notification.
    ask("SELECT pg_advisory_unlock(hashtextextended('k', 0))");
    proxy.hold(Direction::ServerToClient);
    taker
        .mutex("k")
        .try_lock()
        .await
        .expect_err("granted without an answer");
    proxy.heal();
    is_granted(waiting, "what was given back").await;
    nothing_panicked();
}

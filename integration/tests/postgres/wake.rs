//! The connection that notifies waiters.

use leasehold_integration::{
    panics::nothing_panicked,
    proxy::Proxy,
    server::{PostgresServer, Psql},
    steps::{millis, until},
};
use leasehold_postgres::sqlx::postgres::PgListener;
use tokio::task::block_in_place;

use crate::support::{HOUR, MINUTE, client_of, nothing_left, waiting};

/// Returns the connections that notify waiters.
fn listeners(server: &PostgresServer) -> Vec<u32> {
    let pids = server
        .psql("SELECT pid FROM pg_stat_activity WHERE application_name = 'leasehold listens'")
        .unwrap();
    pids.lines().map(|pid| pid.parse().unwrap()).collect()
}

/// Nothing arrives from the connection and nothing can be sent to it, without any report. A cut
/// without a reset looks the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_is_notified_although_its_listener_falls_silent() {
    let mut server = PostgresServer::start().unwrap();
    let url = format!(
        "{}?fallback-poll-interval=3600s&timeout=5s&connect-timeout=20s",
        server.url()
    );
    let (holder, waiter) = (client_of(&url, HOUR).await, client_of(&url, HOUR).await);
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = waiting(&server, &waiter, 1).await;
    let [silent] = listeners(&server)[..] else {
        panic!("expected exactly one listener")
    };
    block_in_place(|| server.pause_backend(silent).unwrap());
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(MINUTE, waiting)
        .await
        .expect("the waiter was not notified")
        .unwrap();
    block_in_place(|| server.resume_backend(silent).unwrap());
    granted.unwrap().release().await.unwrap();
    block_in_place(|| nothing_left(&server, MINUTE));
    nothing_panicked();
}

/// Notifications arrive in the order of the releases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_notifies_only_if_there_is_a_waiter() {
    let server = PostgresServer::start().unwrap();
    let (holder, waiter) = (
        client_of(&server.url(), HOUR).await,
        client_of(&server.url(), HOUR).await,
    );
    let mut ear = PgListener::connect(&server.url()).await.unwrap();
    ear.listen("leasehold").await.unwrap();
    for round in 0..5 {
        let reading = holder.rwlock("r").read().await.unwrap();
        let (one, other) = (
            holder.mutex("k").lock().await.unwrap(),
            holder.mutex("other").lock().await.unwrap(),
        );
        let permit = holder.semaphore("s", 2).acquire().await.unwrap();
        // Both a single release and a batch.
        one.release().await.unwrap();
        let (reading, other, permit) =
            tokio::join!(reading.release(), other.release(), permit.release());
        for released in [reading, other, permit] {
            released.unwrap();
        }
        block_in_place(|| {
            server
                .psql(&format!("NOTIFY leasehold, 'round {round}'"))
                .unwrap()
        });
        let told = tokio::time::timeout(MINUTE, ear.recv())
            .await
            .expect("no notification arrived")
            .unwrap();
        assert_eq!(
            told.payload(),
            format!("round {round}"),
            "a notification was sent without a waiter"
        );
    }
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = waiting(&server, &waiter, 1).await;
    guard.release().await.unwrap();
    let told = tokio::time::timeout(MINUTE, ear.recv())
        .await
        .expect("no notification arrived")
        .unwrap();
    let key = block_in_place(|| {
        server
            .psql("SELECT 'b' || hashtextextended('k', 0)")
            .unwrap()
    });
    assert_eq!(told.payload(), key);
    tokio::time::timeout(MINUTE, waiting)
        .await
        .expect("hangs")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

fn administer(psql: &mut Psql, sql: &str) {
    block_in_place(|| psql.ask(sql, MINUTE).unwrap());
}

/// The server refuses immediately, because the driver itself retries when there is no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_connections_back_off_and_waiter_is_granted_later() {
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let mut psql = server.psql_session().unwrap();
    administer(
        &mut psql,
        "CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop",
    );
    let url = server
        .url_at(proxy.addr())
        .replacen("postgres@", "shop@", 1);
    let (holder, waiter) = (
        client_of(&server.url(), HOUR).await,
        client_of(&format!("{url}?fencing=off"), HOUR).await,
    );
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = waiting(&server, &waiter, 1).await;
    administer(&mut psql, "ALTER ROLE shop NOLOGIN");
    let [listener] = listeners(&server)[..] else {
        panic!("expected exactly one listener")
    };
    let before = proxy.counters().connections;
    administer(
        &mut psql,
        &format!("SELECT pg_terminate_backend({listener})"),
    );
    tokio::time::sleep(millis(4000)).await;
    let tries = proxy.counters().connections - before;
    println!("{tries} tries");
    assert!(tries <= 12, "{tries} tries in four seconds");
    block_in_place(|| {
        until("it is tried again", MINUTE, || {
            proxy.counters().connections > before
        });
    });
    administer(&mut psql, "ALTER ROLE shop LOGIN");
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(MINUTE, waiting)
        .await
        .expect("the waiter hangs")
        .unwrap();
    granted.unwrap().release().await.unwrap();
    block_in_place(|| nothing_left(&server, MINUTE));
    nothing_panicked();
}

//! The connection on which waiters are told.

use leasehold_integration::{
    proxy::Proxy,
    server::{PostgresServer, Psql},
};
use leasehold_postgres::sqlx::postgres::PgListener;
use tokio::task::block_in_place;

use super::support::{HOUR, MINUTE, client_of, nothing_left, waiting};
use crate::support::{millis, nothing_panicked, until};

/// The connections on which waiters are told.
fn listeners(server: &PostgresServer) -> Vec<u32> {
    let pids = server
        .psql("SELECT pid FROM pg_stat_activity WHERE application_name = 'leasehold listens'")
        .unwrap();
    pids.lines().map(|pid| pid.parse().unwrap()).collect()
}

/// Nothing comes from it and nothing goes to it, and nobody says that it is gone: a cut that no
/// reset follows looks the same.
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
        panic!("who waits is told on one connection")
    };
    block_in_place(|| server.pause_backend(silent).unwrap());
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(MINUTE, waiting)
        .await
        .expect("the waiter is deaf")
        .unwrap();
    block_in_place(|| server.resume_backend(silent).unwrap());
    granted.unwrap().release().await.unwrap();
    block_in_place(|| nothing_left(&server, MINUTE));
    nothing_panicked();
}

/// What is told is told in the order of the releases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_notifies_if_somebody_waits_and_only_then() {
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
        // Alone, and in one statement.
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
            .expect("nothing is heard")
            .unwrap();
        assert_eq!(
            told.payload(),
            format!("round {round}"),
            "somebody was told though nobody waits"
        );
    }
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = waiting(&server, &waiter, 1).await;
    guard.release().await.unwrap();
    let told = tokio::time::timeout(MINUTE, ear.recv())
        .await
        .expect("nothing is heard")
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

/// By a server that refuses at once: the driver itself asks again where it is told that there is no
/// room.
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
        panic!("who waits is told on one connection")
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

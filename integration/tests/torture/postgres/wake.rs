//! The connection on which waiters are told.

use std::{sync::Arc, time::Duration};

use leasehold_core::{Attempt, LockBackend, LockClient, LockGuard, Released, Request, Result, Ttl};
use leasehold_integration::{
    proxy::Proxy,
    server::{PostgresServer, Psql},
};
use leasehold_postgres::{PostgresBackend, sqlx::postgres::PgListener};
use tokio::task::{JoinHandle, block_in_place};

use super::support::{client_of, nothing_left};
use crate::support::{millis, nothing_panicked, until};

/// So long that nobody looks by itself before the test is over: an eighth of it at the earliest.
const HOUR: u64 = 3_600_000;

/// For what must happen at all, on a machine that builds something else beside.
const PATIENCE: Duration = Duration::from_secs(60);

/// The connections on which waiters are told.
fn listeners(server: &PostgresServer) -> Vec<u32> {
    let pids = server.psql("SELECT pid FROM pg_stat_activity WHERE application_name = 'leasehold listens'").unwrap();
    pids.lines().map(|pid| pid.parse().unwrap()).collect()
}

/// Waits for the lock until its signs are up: that is what it does when it can be told.
async fn waiting(server: &PostgresServer, client: &LockClient) -> JoinHandle<Result<LockGuard>> {
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    block_in_place(|| until("it waits", PATIENCE, || server.psql(locks).unwrap() == "3"));
    waiting
}

/// Nothing comes from it and nothing goes to it, and nobody says that it is gone: a cut that no reset follows looks the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_is_told_although_its_connection_for_that_falls_silent() {
    let mut server = PostgresServer::start().unwrap();
    let url = format!("{}?safety-net=3600s&timeout=5s&connect-timeout=20s", server.url());
    let (holder, waiter) = (client_of(&url, HOUR).await, client_of(&url, HOUR).await);
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = waiting(&server, &waiter).await;
    let [silent] = listeners(&server)[..] else { panic!("who waits is told on one connection") };
    block_in_place(|| server.pause_backend(silent).unwrap());
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(PATIENCE, waiting).await.expect("the waiter is deaf").unwrap();
    block_in_place(|| server.resume_backend(silent).unwrap());
    granted.unwrap().release().await.unwrap();
    block_in_place(|| nothing_left(&server, PATIENCE));
    nothing_panicked();
}

/// Who waits is kept from taking what is free: then only its sign says that it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_courteous_attempt_leaves_what_is_free_to_who_waits() {
    let mut server = PostgresServer::start().unwrap();
    let holder = PostgresBackend::connect(&server.url()).await.unwrap();
    let waiter = client_of(&server.url(), HOUR).await;
    let turn = |key: &str| Request::new(key.try_into().unwrap()).with_ttl(Ttl::from_millis(HOUR).unwrap());
    let attempt = async |request: Request| Arc::clone(&holder).try_acquire(request).await.unwrap();
    let Attempt::Granted(lease) = attempt(turn("k").with_courtesy(true)).await else { panic!("nobody waits") };
    let waiting = waiting(&server, &waiter).await;
    let signed = "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'";
    let sleeper = block_in_place(|| server.psql(signed).unwrap()).parse().unwrap();
    block_in_place(|| server.pause_backend(sleeper).unwrap());
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    let polite = turn("k").with_courtesy(true);
    assert!(matches!(attempt(polite.clone()).await, Attempt::Contended(_)), "alone");
    let (alone, together, _other) = tokio::join!(attempt(turn("other")), attempt(polite), attempt(turn("third")));
    assert!(matches!(together, Attempt::Contended(_)), "together with others");
    assert!(matches!(alone, Attempt::Granted(_)));
    let Attempt::Granted(lease) = attempt(turn("k")).await else { panic!("it is free for who is not courteous") };
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    block_in_place(|| server.resume_backend(sleeper).unwrap());
    tokio::time::timeout(PATIENCE, waiting).await.expect("hangs").unwrap().unwrap().release().await.unwrap();
    nothing_panicked();
}

/// Alone, and in one statement with others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_release_of_a_last_turn_tells_whether_anybody_waits() {
    let server = PostgresServer::start().unwrap();
    let holder = PostgresBackend::connect(&server.url()).await.unwrap();
    let waiter = client_of(&server.url(), HOUR).await;
    let turn = |key: &str| Request::new(key.try_into().unwrap()).with_ttl(Ttl::from_millis(HOUR).unwrap());
    let taken = async |turn: &Request| Arc::clone(&holder).acquire(turn.clone()).await.unwrap();
    for (last, waited_for) in [(false, false), (true, false), (true, true)] {
        let turns = [turn("k").with_last_turn(last), turn("other").with_last_turn(last), turn("third")];
        let [lease, other, third] = [taken(&turns[0]).await, taken(&turns[1]).await, taken(&turns[2]).await];
        let waiting = if waited_for {
            let mutex = waiter.mutex("k");
            let waiting = tokio::spawn(async move { mutex.lock().await });
            let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
            block_in_place(|| until("it waits", PATIENCE, || server.psql(locks).unwrap() == "5"));
            Some(waiting)
        } else {
            None
        };
        if waited_for {
            // All go together.
            let (one, two, three) = tokio::join!(lease.release(), other.release(), third.release());
            assert_eq!([one.unwrap(), two.unwrap(), three.unwrap()], [Released::Freed; 3]);
        } else {
            for lease in [lease, other, third] {
                assert_eq!(lease.release().await.unwrap(), Released::Freed);
            }
        }
        assert_eq!(turns.map(|turn| turn.nobody_waits()), [last && !waited_for, last, false], "{last} {waited_for}");
        if let Some(waiting) = waiting {
            waiting.await.unwrap().unwrap().release().await.unwrap();
        }
    }
    block_in_place(|| nothing_left(&server, PATIENCE));
    nothing_panicked();
}

/// What is told is told in the order of the releases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_notifies_if_somebody_waits_and_only_then() {
    let server = PostgresServer::start().unwrap();
    let (holder, waiter) = (client_of(&server.url(), HOUR).await, client_of(&server.url(), HOUR).await);
    let mut ear = PgListener::connect(&server.url()).await.unwrap();
    ear.listen("leasehold").await.unwrap();
    for round in 0..5 {
        let reading = holder.rwlock("r").read().await.unwrap();
        let (one, other) = (holder.mutex("k").lock().await.unwrap(), holder.mutex("other").lock().await.unwrap());
        let permit = holder.semaphore("s", 2).acquire().await.unwrap();
        // Alone, and in one statement.
        one.release().await.unwrap();
        let (reading, other, permit) = tokio::join!(reading.release(), other.release(), permit.release());
        for released in [reading, other, permit] {
            released.unwrap();
        }
        block_in_place(|| server.psql(&format!("NOTIFY leasehold, 'round {round}'")).unwrap());
        let told = tokio::time::timeout(PATIENCE, ear.recv()).await.expect("nothing is heard").unwrap();
        assert_eq!(told.payload(), format!("round {round}"), "somebody was told though nobody waits");
    }
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = waiting(&server, &waiter).await;
    guard.release().await.unwrap();
    let told = tokio::time::timeout(PATIENCE, ear.recv()).await.expect("nothing is heard").unwrap();
    let key = block_in_place(|| server.psql("SELECT 'b' || hashtextextended('k', 0)").unwrap());
    assert_eq!(told.payload(), key);
    tokio::time::timeout(PATIENCE, waiting).await.expect("hangs").unwrap().unwrap().release().await.unwrap();
    nothing_panicked();
}

fn administer(psql: &mut Psql, sql: &str) {
    block_in_place(|| psql.ask(sql, PATIENCE).unwrap());
}

/// By a server that refuses at once: the driver itself asks again where it is told that there is no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_refused_is_asked_for_ever_more_seldom_and_the_waiter_is_granted_later() {
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let mut psql = server.psql_session().unwrap();
    administer(&mut psql, "CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop");
    let url = server.url_at(proxy.addr()).replacen("postgres@", "shop@", 1);
    let (holder, waiter) = (client_of(&server.url(), HOUR).await, client_of(&format!("{url}?fencing=off"), HOUR).await);
    let guard = holder.mutex("k").lock().await.unwrap();
    let waiting = waiting(&server, &waiter).await;
    administer(&mut psql, "ALTER ROLE shop NOLOGIN");
    let [listener] = listeners(&server)[..] else { panic!("who waits is told on one connection") };
    let before = proxy.counters().connections;
    administer(&mut psql, &format!("SELECT pg_terminate_backend({listener})"));
    tokio::time::sleep(millis(4000)).await;
    let tries = proxy.counters().connections - before;
    println!("{tries} tries");
    assert!(tries <= 12, "{tries} tries in four seconds");
    block_in_place(|| until("it is tried again", PATIENCE, || proxy.counters().connections > before));
    administer(&mut psql, "ALTER ROLE shop LOGIN");
    guard.release().await.unwrap();
    let granted = tokio::time::timeout(PATIENCE, waiting).await.expect("the waiter hangs").unwrap();
    granted.unwrap().release().await.unwrap();
    block_in_place(|| nothing_left(&server, PATIENCE));
    nothing_panicked();
}

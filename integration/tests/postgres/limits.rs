//! Exhausted resources of a server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use futures_util::future::join_all;
use leasehold_core::{ErrorKind, LockClient, LockGuard, backend::LockBackend};
use leasehold_integration::{
    held::Held,
    panics::nothing_panicked,
    server::{PostgresServer, Psql},
    steps::{SOON, is_a_fault, millis, until},
};
use tokio::task::block_in_place;

use crate::support::{client_of, connect, nothing_left, only_left};

const TTL: u64 = 10_000;
/// Starts a server with few connections and few locks: its table has room for a little more than 17
/// × 16.
fn small_server() -> PostgresServer {
    let builder = PostgresServer::builder()
        .setting("max_connections", "12")
        .setting("max_locks_per_transaction", "10");
    builder
        .setting("superuser_reserved_connections", "3")
        .start()
        .unwrap()
}

/// Creates a role that cannot use the reserved connections.
fn with_role(server: &PostgresServer) -> String {
    server
        .psql("CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop; GRANT ALL ON DATABASE postgres TO shop")
        .unwrap();
    server.url_as("shop")
}

/// Opens connections until the server has no more.
fn exhaust(url: &str) -> Vec<Psql> {
    let mut taken = Vec::new();
    loop {
        let mut psql = Psql::connect(url).unwrap();
        if psql.ask("SELECT 1", SOON).is_err() {
            return taken;
        }
        taken.push(psql);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_free_connections_is_a_typed_error() {
    let server = small_server();
    let url = block_in_place(|| with_role(&server));
    // The sequence of the tokens is created while there is room.
    client_of(&url, TTL)
        .await
        .mutex("k")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let client = client_of(&url, TTL).await;
    let guard = client.mutex("held").lock().await.unwrap();
    let taken = block_in_place(|| exhaust(&url));
    assert!(!taken.is_empty());
    // A new client.
    let connecting = tokio::time::timeout(SOON, connect(&url))
        .await
        .expect("hangs");
    let refused = match connecting {
        Ok(other) => tokio::time::timeout(SOON, other.mutex("k").try_lock())
            .await
            .expect("hangs")
            .map(drop),
        Err(error) => Err(error),
    };
    let error = refused.expect_err("connected although the server has no connections left");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // An acquisition that needs another session.
    let ttl = leasehold_core::Ttl::from_millis(2 * TTL).unwrap();
    let mutex = client.mutex("k").with_ttl(ttl);
    let error = tokio::time::timeout(SOON, mutex.try_lock())
        .await
        .expect("hangs")
        .expect_err("granted although the server has no connections left");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // Held locks stay held.
    assert!(guard.is_held());
    guard.renew().await.unwrap();
    drop(taken);
    mutex
        .lock_timeout(SOON)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    guard.release().await.unwrap();
    nothing_panicked();
}

/// A batch in which some locks were acquired before one failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_lock_table_is_a_typed_error_and_leaves_nothing() {
    let server = small_server();
    let client = client_of(&server.url(), TTL).await;
    let kept = client.mutex("kept").lock().await.unwrap();
    let mut held: Vec<LockGuard> = Vec::new();
    let mut refusals = 0;
    for round in 0..100 {
        let locking = (0..100).map(|n| {
            let mutex = client.mutex(format!("{round}/{n}"));
            async move { mutex.try_lock().await }
        });
        for outcome in join_all(locking).await {
            match outcome {
                Ok(guard) => held.push(guard.expect("a new name is contended")),
                Err(error) => {
                    assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::Unavailable | ErrorKind::Indeterminate
                        ),
                        "{error:?}"
                    );
                    refusals += 1;
                }
            }
        }
        if refusals > 0 {
            break;
        }
    }
    println!("{} held, {refusals} refused", held.len());
    assert!(refusals > 0, "the lock table was never full");
    assert!(
        kept.is_held() && held.iter().all(LockGuard::is_held),
        "a held lock was lost to a full table"
    );
    for guard in held {
        guard.release().await.unwrap();
    }
    // The session stays alive: locks of a failed statement are released and do not just expire.
    block_in_place(|| only_left(&server, &["kept"]));
    kept.release().await.unwrap();
    client
        .mutex("0/0")
        .lock_timeout(SOON)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

/// A connection has at most a thousand locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_locks_than_connections_carry_is_a_typed_error() {
    let server = PostgresServer::start().unwrap();
    // Each statement walks over all locks of its session, which takes time on a busy machine.
    let client = client_of(
        &format!("{}?max-sessions=2&timeout=20s", server.url()),
        8 * TTL,
    )
    .await;
    let mut held: Vec<LockGuard> = Vec::new();
    let mut refused = None;
    for round in 0..25 {
        let locking = (0..100).map(|n| {
            let mutex = client.mutex(format!("{round}/{n}"));
            async move { mutex.try_lock().await }
        });
        for outcome in join_all(locking).await {
            match outcome {
                Ok(guard) => held.push(guard.expect("a new name is contended")),
                Err(error) => refused = Some(error),
            }
        }
    }
    let error = refused.expect("the limit has no effect");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("max-sessions"), "{error}");
    assert!((2000..2500).contains(&held.len()), "{} held", held.len());
    assert!(held.iter().all(LockGuard::is_held));
    // A release makes room without another connection.
    held.pop().unwrap().release().await.unwrap();
    client
        .mutex("one more")
        .lock_timeout(SOON)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    for guard in held {
        guard.release().await.unwrap();
    }
    block_in_place(|| nothing_left(&server, SOON));
    nothing_panicked();
}

/// Returns the connections that hold locks, or may hold some.
fn sessions(server: &PostgresServer) -> String {
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^leasehold [0-9]+ms '";
    server.psql(sql).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_idle_session_makes_room_for_another_ttl() {
    let server = PostgresServer::start().unwrap();
    let options = "max-sessions=1&timeout=20s&connect-timeout=20s";
    let client = client_of(&format!("{}?{options}", server.url()), TTL).await;
    let rival = client_of(&server.url(), TTL).await;
    let [short, long] =
        [120_000, 240_000].map(|ttl| leasehold_core::Ttl::from_millis(ttl).unwrap());
    let refused = async |ttl| {
        let error = client
            .mutex("refused")
            .with_ttl(ttl)
            .try_lock()
            .await
            .expect_err("the limit has no effect");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("max-sessions"), "{error}");
    };
    for ttl in [short, long, short, long] {
        client
            .mutex("k")
            .with_ttl(ttl)
            .lock_timeout(SOON)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
        // The server notices the end of the other connection a little later.
        block_in_place(|| {
            until("there is one session", SOON, || sessions(&server) == "1");
        });
    }
    // A session that holds a lock.
    let guard = client.mutex("k").with_ttl(long).lock().await.unwrap();
    refused(short).await;
    guard.renew().await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    // A session with a waiter.
    let held = rival.mutex("k").lock().await.unwrap();
    let mutex = client.mutex("k").with_ttl(long);
    let waiting = tokio::spawn(async move { mutex.lock().await });
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    block_in_place(|| until("it waits", SOON, || server.psql(locks).unwrap() == "3"));
    refused(short).await;
    held.release().await.unwrap();
    let granted = tokio::time::timeout(SOON, waiting)
        .await
        .expect("the waiter hangs")
        .unwrap()
        .unwrap();
    granted.release().await.unwrap();
    client
        .mutex("k")
        .with_ttl(short)
        .lock_timeout(SOON)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

/// The number of failed statements that the test waits for.
const FAULTS: u32 = 50;

/// Returns SQL that cancels matching statements of other sessions fifty times. After each sleep
/// this session is scheduled first, and finds them in their statements.
fn cancelling_of(which: &str) -> String {
    format!(
        "DO $$ BEGIN FOR i IN 1..50 LOOP PERFORM pg_sleep(0.001); PERFORM pg_stat_clear_snapshot(); \
         PERFORM pg_cancel_backend(pid) FROM pg_stat_activity WHERE state = 'active' \
         AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND {which}; END LOOP; END $$"
    )
}

/// An administrator cancels statements repeatedly while locks are acquired and released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_statements_are_typed_errors_and_leave_nothing() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let mut psql = server.psql_session().unwrap();
    let (faults, end) = (Arc::new(AtomicU32::new(0)), Instant::now() + 3 * SOON);
    let over =
        move |faults: &AtomicU32| faults.load(Ordering::Relaxed) >= FAULTS || Instant::now() > end;
    let work = (0..32).map(|n| {
        let (mutex, faults) = (client.mutex(format!("k{n}")), &faults);
        async move {
            while !over(faults) {
                match mutex.try_lock().await {
                    // The release itself may be cancelled.
                    Ok(Some(guard)) => drop(guard.release().await),
                    Ok(None) => {
                        faults.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        assert!(is_a_fault(error.kind()), "{error:?}");
                        faults.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    let counted = Arc::clone(&faults);
    let cancelling = tokio::task::spawn_blocking(move || {
        while !over(&counted) {
            psql.ask(&cancelling_of("true"), SOON).unwrap();
        }
    });
    let (_, cancelled) = tokio::join!(join_all(work), cancelling);
    cancelled.unwrap();
    // A busy machine may not reach the requested number.
    assert!(
        faults.load(Ordering::Relaxed) > 0,
        "no statement was cancelled"
    );
    for n in 0..32 {
        client
            .mutex(format!("k{n}"))
            .lock_timeout(SOON)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    // Keeps the session alive, so that nothing just expires.
    let kept = client
        .mutex("kept")
        .lock_timeout(SOON)
        .await
        .unwrap()
        .unwrap();
    block_in_place(|| only_left(&server, &["kept"]));
    kept.release().await.unwrap();
    nothing_panicked();
}

/// A leftover waiter marker would keep readers out, or make every release notify.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_whose_statements_are_cancelled_leave_no_markers() {
    let server = PostgresServer::start().unwrap();
    // Two clients on one backend: two waiters for one key share one marker.
    let backend = leasehold_postgres::PostgresBackend::connect(&server.url())
        .await
        .unwrap();
    let backend: Arc<dyn LockBackend> = backend;
    let clients = [
        LockClient::new(Arc::clone(&backend)),
        LockClient::new(backend),
        connect(&server.url()).await.unwrap(),
    ];
    let mut psql = server.psql_session().unwrap();
    // Most faults are retried without a report, so it takes five seconds, or a minute on a busy
    // machine, until enough are reported.
    let (faults, end) = (Arc::new(AtomicU32::new(0)), Instant::now() + 9 * SOON);
    let over =
        move |faults: &AtomicU32| faults.load(Ordering::Relaxed) >= FAULTS || Instant::now() > end;
    let work = (0..30_usize).map(|n| {
        let (client, faults) = (&clients[n % 3], &faults);
        async move {
            while !over(faults) {
                let name = format!("k{}", n % 2);
                // On a busy machine the shorter timeouts end before a fault is reported.
                let limit = millis(20 << (n % 6));
                let outcome = match n % 5 {
                    0 | 1 => client
                        .rwlock(name)
                        .write_timeout(limit)
                        .await
                        .map(|guard| guard.map(Held::from)),
                    2 | 3 => client
                        .rwlock(name)
                        .read_timeout(limit)
                        .await
                        .map(|guard| guard.map(Held::from)),
                    _ => client
                        .semaphore(name, 1)
                        .acquire_timeout(limit)
                        .await
                        .map(|permit| permit.map(Held::from)),
                };
                match outcome {
                    Ok(Some(guard)) => {
                        tokio::time::sleep(millis(5)).await;
                        drop(guard.release().await);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        assert!(is_a_fault(error.kind()), "{error:?}");
                        faults.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    let counted = Arc::clone(&faults);
    let cancelling = tokio::task::spawn_blocking(move || {
        while !over(&counted) {
            // Statements that check held locks are excluded: a session whose check fails is closed,
            // and leaves nothing.
            psql.ask(&cancelling_of("query LIKE '%unnest%'"), SOON)
                .unwrap();
        }
    });
    let (_, cancelled) = tokio::join!(join_all(work), cancelling);
    cancelled.unwrap();
    // A busy machine may not reach the requested number.
    assert!(
        faults.load(Ordering::Relaxed) > 0,
        "no statement was cancelled"
    );
    let mut kept = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        kept.push(
            client
                .mutex(format!("kept{n}"))
                .lock_timeout(SOON)
                .await
                .unwrap()
                .unwrap(),
        );
    }
    block_in_place(|| only_left(&server, &["kept0", "kept1", "kept2"]));
    for guard in kept {
        guard.release().await.unwrap();
    }
    nothing_panicked();
}

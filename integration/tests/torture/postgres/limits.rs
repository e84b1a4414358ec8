//! What a server runs out of.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use leasehold_core::{ErrorKind, LockClient, LockGuard, backend::LockBackend};
use leasehold_integration::{
    held::Held,
    server::{PostgresServer, Psql},
};
use tokio::task::block_in_place;

use super::support::{client_of, connect, nothing_left, only_left};
use crate::support::{is_a_fault, millis, nothing_panicked, until};

const TTL: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Few connections, and few locks: the table has room for about 17 × 16 of them, and a little more.
fn small_server() -> PostgresServer {
    let builder = PostgresServer::builder()
        .setting("max_connections", "12")
        .setting("max_locks_per_transaction", "10");
    builder
        .setting("superuser_reserved_connections", "3")
        .start()
        .unwrap()
}

/// A role to which the reserved connections are not open.
fn with_role(server: &PostgresServer) -> String {
    server
        .psql("CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop; GRANT ALL ON DATABASE postgres TO shop")
        .unwrap();
    server.url_as("shop")
}

/// Takes connections until there are no more.
fn exhaust(url: &str) -> Vec<Psql> {
    let mut taken = Vec::new();
    loop {
        let mut psql = Psql::connect(url).unwrap();
        if psql.ask("SELECT 1", PATIENCE).is_err() {
            return taken;
        }
        taken.push(psql);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_free_connections_is_a_typed_error() {
    let server = small_server();
    let url = block_in_place(|| with_role(&server));
    // What its tokens need is made when there is room.
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
    let connecting = tokio::time::timeout(PATIENCE, connect(&url))
        .await
        .expect("hangs");
    let refused = match connecting {
        Ok(other) => tokio::time::timeout(PATIENCE, other.mutex("k").try_lock())
            .await
            .expect("hangs")
            .map(drop),
        Err(error) => Err(error),
    };
    let error = refused.expect_err("there is no connection to lock over");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // One that needs another session.
    let ttl = leasehold_core::Ttl::from_millis(2 * TTL).unwrap();
    let mutex = client.mutex("k").with_ttl(ttl);
    let error = tokio::time::timeout(PATIENCE, mutex.try_lock())
        .await
        .expect("hangs")
        .expect_err("there is no connection");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // What is held stays so.
    assert!(guard.is_held());
    guard.renew().await.unwrap();
    drop(taken);
    mutex
        .lock_timeout(PATIENCE)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    guard.release().await.unwrap();
    nothing_panicked();
}

/// Gathered statements in which some locks were taken before one failed.
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
                Ok(guard) => held.push(guard.expect("the name is new")),
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
        "a full table costs nobody what he has"
    );
    for guard in held {
        guard.release().await.unwrap();
    }
    // With the session alive: what a failed statement took is given back, and does not merely
    // expire.
    block_in_place(|| only_left(&server, &["kept"]));
    kept.release().await.unwrap();
    client
        .mutex("0/0")
        .lock_timeout(PATIENCE)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

/// A connection carries up to a thousand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_locks_than_connections_carry_is_a_typed_error() {
    let server = PostgresServer::start().unwrap();
    // Each statement walks over all that its session has: beside other builds it may take its time.
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
                Ok(guard) => held.push(guard.expect("the name is new")),
                Err(error) => refused = Some(error),
            }
        }
    }
    let error = refused.expect("there is no limit");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("max-sessions"), "{error}");
    assert!((2000..2500).contains(&held.len()), "{} held", held.len());
    assert!(held.iter().all(LockGuard::is_held));
    // Room again, without another connection.
    held.pop().unwrap().release().await.unwrap();
    client
        .mutex("one more")
        .lock_timeout(PATIENCE)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    for guard in held {
        guard.release().await.unwrap();
    }
    block_in_place(|| nothing_left(&server, millis(TTL)));
    nothing_panicked();
}

/// The connections that hold locks, or may.
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
            .expect_err("there is no limit");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("max-sessions"), "{error}");
    };
    for ttl in [short, long, short, long] {
        client
            .mutex("k")
            .with_ttl(ttl)
            .lock_timeout(PATIENCE)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
        // The server sees the end of the other a little later.
        block_in_place(|| {
            until("there is one session", PATIENCE, || {
                sessions(&server) == "1"
            });
        });
    }
    // One that holds.
    let guard = client.mutex("k").with_ttl(long).lock().await.unwrap();
    refused(short).await;
    guard.renew().await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    // One in which somebody waits.
    let held = rival.mutex("k").lock().await.unwrap();
    let mutex = client.mutex("k").with_ttl(long);
    let waiting = tokio::spawn(async move { mutex.lock().await });
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    block_in_place(|| until("it waits", PATIENCE, || server.psql(locks).unwrap() == "3"));
    refused(short).await;
    held.release().await.unwrap();
    let granted = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the waiter hangs")
        .unwrap()
        .unwrap();
    granted.release().await.unwrap();
    client
        .mutex("k")
        .with_ttl(short)
        .lock_timeout(PATIENCE)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_panicked();
}

/// Statements that fail before the test has seen enough.
const FAULTS: u32 = 50;

/// Cancels what others run, fifty times: who wakes from a sleep is let in before who runs, and
/// finds him in his statement.
fn cancelling_of(which: &str) -> String {
    format!(
        "DO $$ BEGIN FOR i IN 1..50 LOOP PERFORM pg_sleep(0.001); PERFORM pg_stat_clear_snapshot(); \
         PERFORM pg_cancel_backend(pid) FROM pg_stat_activity WHERE state = 'active' \
         AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND {which}; END LOOP; END $$"
    )
}

/// A statement that an administrator cancels, again and again, while locks come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_statements_are_typed_errors_and_leave_nothing() {
    let server = PostgresServer::start().unwrap();
    let client = client_of(&server.url(), TTL).await;
    let mut psql = server.psql_session().unwrap();
    let (faults, end) = (Arc::new(AtomicU32::new(0)), Instant::now() + 3 * PATIENCE);
    let over =
        move |faults: &AtomicU32| faults.load(Ordering::Relaxed) >= FAULTS || Instant::now() > end;
    let work = (0..32).map(|n| {
        let (mutex, faults) = (client.mutex(format!("k{n}")), &faults);
        async move {
            while !over(faults) {
                match mutex.try_lock().await {
                    // The release may be what is cancelled.
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
            psql.ask(&cancelling_of("true"), PATIENCE).unwrap();
        }
    });
    let (_, cancelled) = tokio::join!(join_all(work), cancelling);
    cancelled.unwrap();
    // Beside other work the machine may not get to as many as asked for.
    assert!(
        faults.load(Ordering::Relaxed) > 0,
        "no statement was cancelled"
    );
    for n in 0..32 {
        client
            .mutex(format!("k{n}"))
            .lock_timeout(PATIENCE)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    // It keeps the session alive: nothing merely expires.
    let kept = client
        .mutex("kept")
        .lock_timeout(PATIENCE)
        .await
        .unwrap()
        .unwrap();
    block_in_place(|| only_left(&server, &["kept"]));
    kept.release().await.unwrap();
    nothing_panicked();
}

/// The same with those who wait: a sign that is left keeps readers out, or lets every release
/// notify.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_whose_statements_are_cancelled_leave_no_signs() {
    let server = PostgresServer::start().unwrap();
    // Two clients on one backend: two waiters of one key have one sign.
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
    // Most ride them out, so it takes a while to be told of enough: five seconds, or a minute
    // beside other builds.
    let (faults, end) = (Arc::new(AtomicU32::new(0)), Instant::now() + 9 * PATIENCE);
    let over =
        move |faults: &AtomicU32| faults.load(Ordering::Relaxed) >= FAULTS || Instant::now() > end;
    let work = (0..30_usize).map(|n| {
        let (client, faults) = (&clients[n % 3], &faults);
        async move {
            while !over(faults) {
                let name = format!("k{}", n % 2);
                // On a busy machine the shorter ones are over before a fault is told.
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
            // Not the looks at what is held: a session that may not look is given up, and leaves
            // nothing.
            psql.ask(&cancelling_of("query LIKE '%unnest%'"), PATIENCE)
                .unwrap();
        }
    });
    let (_, cancelled) = tokio::join!(join_all(work), cancelling);
    cancelled.unwrap();
    // Beside other work the machine may not get to as many as asked for.
    assert!(
        faults.load(Ordering::Relaxed) > 0,
        "no statement was cancelled"
    );
    let mut kept = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        kept.push(
            client
                .mutex(format!("kept{n}"))
                .lock_timeout(PATIENCE)
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

use std::time::{Duration, Instant};

use leasehold_core::LockClient;
use leasehold_integration::{
    panics::nothing_panicked,
    server::{PostgresServer, Psql},
    steps::{millis, until},
};
use tokio::task::{JoinSet, block_in_place};

use crate::support::{client_of, connections, nothing_left};

const TTL: u64 = 30_000;

/// The timeout of operations that must succeed, long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Holds `keys` keys with one client while `waiters` tasks of another wait for them. Returns the
/// results of the waiters.
async fn assemble(
    server: &PostgresServer,
    keys: usize,
    waiters: usize,
) -> (Vec<leasehold_core::LockGuard>, LockClient, JoinSet<()>) {
    let (holder, client) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let mut guards = Vec::new();
    for key in 0..keys {
        guards.push(holder.mutex(format!("k{key}")).lock().await.unwrap());
    }
    let mut crowd = JoinSet::new();
    for n in 0..waiters {
        let mutex = client.mutex(format!("k{}", n % keys));
        crowd.spawn(async move {
            mutex.lock().await.unwrap().release().await.unwrap();
        });
    }
    tokio::time::sleep(millis(1000)).await;
    assert_eq!(crowd.len(), waiters);
    (guards, holder, crowd)
}

async fn all_served(guards: Vec<leasehold_core::LockGuard>, mut crowd: JoinSet<()>) {
    for guard in guards {
        guard.release().await.unwrap();
    }
    let begun = Instant::now();
    while let Some(served) = crowd.join_next().await {
        served.unwrap();
        assert!(begun.elapsed() < PATIENCE, "{} still wait", crowd.len());
    }
    println!("all served after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_waiters_need_a_handful_of_connections() {
    let server = PostgresServer::start().unwrap();
    let (guards, _holder, crowd) = assemble(&server, 100, 10_000).await;
    let there = block_in_place(|| connections(&server));
    println!("{there:#?}");
    // Both processes together: sessions, listeners, and a connection for inspections.
    assert!(there.len() <= 10, "{} connections", there.len());
    block_in_place(|| {
        let snapshots = "SELECT count(*) FROM pg_stat_activity \
                         WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        until("no waiter holds a snapshot", millis(20_000), || {
            server.psql(snapshots).unwrap() == "0"
        });
    });
    all_served(guards, crowd).await;
    block_in_place(|| nothing_left(&server, millis(20_000)));
    nothing_panicked();
}

fn index_and_vacuum(psql: &mut Psql) {
    psql.ask("CREATE INDEX CONCURRENTLY ON t (n)", PATIENCE)
        .unwrap();
    psql.ask("VACUUM FULL t", PATIENCE).unwrap();
    psql.ask("VACUUM (FREEZE, VERBOSE) t", PATIENCE).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_block_neither_concurrent_index_nor_vacuum() {
    let server = PostgresServer::start().unwrap();
    block_in_place(|| {
        server
            .psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
            .unwrap()
    });
    let (guards, _holder, crowd) = assemble(&server, 10, 1000).await;
    block_in_place(|| {
        server.psql("DELETE FROM t WHERE n > 500").unwrap();
        index_and_vacuum(&mut server.psql_session().unwrap());
        // The dead rows are gone: no session's snapshot kept them.
        let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 't'";
        until("the dead rows are gone", millis(20_000), || {
            server.psql(dead).unwrap() == "0"
        });
    });
    assert_eq!(crowd.len(), 1000);
    all_served(guards, crowd).await;
    nothing_panicked();
}

/// A control: a waiter inside `pg_advisory_lock` holds a snapshot, for which the index waits.
#[test]
fn waiter_inside_the_server_blocks_a_concurrent_index() {
    let server = PostgresServer::start().unwrap();
    server
        .psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        .unwrap();
    let (mut holder, mut waiter) = (
        server.psql_session().unwrap(),
        server.psql_session().unwrap(),
    );
    holder.ask("SELECT pg_advisory_lock(1)", PATIENCE).unwrap();
    waiter.send("SELECT pg_advisory_lock(1)").unwrap();
    until("it waits", PATIENCE, || {
        server
            .psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            .unwrap()
            == "1"
    });
    let mut indexer = server.psql_session().unwrap();
    indexer.send("CREATE INDEX CONCURRENTLY ON t (n)").unwrap();
    assert!(
        indexer.answer(millis(1500)).is_err(),
        "the control does not delay the index"
    );
    holder
        .ask("SELECT pg_advisory_unlock(1)", PATIENCE)
        .unwrap();
    waiter.answer(PATIENCE).unwrap();
    indexer.answer(PATIENCE).unwrap();
}

use std::time::{Duration, Instant};

use leasehold_core::{LockClient, LockGuard, Result};
use leasehold_integration::{
    leftovers,
    server::{PgBouncer, PostgresServer, Psql},
    steps::{SOON, until},
};
use leasehold_postgres::PostgresBackend;
use tokio::task::{JoinHandle, block_in_place};

pub(crate) use leasehold_integration::steps::client_of;

/// Long enough that no waiter polls during a test: the first poll is after an eighth of it.
pub(crate) const HOUR: u64 = 3_600_000;

/// The timeout of operations that must succeed, long enough for a busy machine.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Returns the backends that hold the lock of this name, by the key that any SQL client computes.
pub(crate) fn holders(server: &PostgresServer, name: &str) -> Vec<u32> {
    locks(server, name, true)
}

fn locks(server: &PostgresServer, name: &str, granted: bool) -> Vec<u32> {
    let pids = server.psql(&format!(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted = {granted} \
         AND (classid::bigint << 32) | objid::bigint = hashtextextended('{name}', 0)"
    ));
    pids.unwrap()
        .lines()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Returns the single backend that holds the lock.
#[track_caller]
pub(crate) fn holder(server: &PostgresServer, name: &str) -> u32 {
    match holders(server, name)[..] {
        [pid] => pid,
        ref pids => panic!("{name} is held by {pids:?}"),
    }
}

/// Connects through the pooler until it lends this backend. The returned sessions keep their
/// backends.
pub(crate) fn lent(pooler: &PgBouncer, pid: u32) -> Vec<Psql> {
    let mut borrowers = Vec::new();
    loop {
        let mut borrower = Psql::connect(&pooler.url()).unwrap();
        let lent = borrower.ask("BEGIN; SELECT pg_backend_pid()", SOON);
        borrowers.push(borrower);
        if lent.unwrap() == pid.to_string() {
            return borrowers;
        }
        assert!(borrowers.len() < 10, "backend {pid} is never lent");
    }
}

/// Returns the connections of clients, without the harness's own.
pub(crate) fn connections(server: &PostgresServer) -> Vec<String> {
    let rows = server.psql(
        "SELECT pid, application_name, state, query FROM pg_stat_activity \
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    );
    rows.unwrap().lines().map(str::to_owned).collect()
}

/// Asserts that within `patience` no advisory lock is left on this server.
#[track_caller]
pub(crate) fn nothing_left(server: &PostgresServer, patience: Duration) {
    leftovers::nothing_left(patience, || leftovers::postgres(server)).unwrap();
}

/// Asserts that the only advisory locks left on this server are soon those of these names.
#[track_caller]
pub(crate) fn only_left(server: &PostgresServer, names: &[&str]) {
    let until = Instant::now() + SOON;
    loop {
        let all = leftovers::postgres(server).unwrap();
        if all.len() == names.len() {
            for name in names {
                holder(server, name);
            }
            return;
        }
        assert!(
            Instant::now() < until,
            "{all:?} are left instead of {names:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Connects a client with default options.
pub(crate) async fn connect(url: &str) -> Result<LockClient> {
    PostgresBackend::connect(url).await.map(LockClient::new)
}

/// Waits for the lock `k` in a task, and returns once its waiter markers are set beside the `held`
/// existing locks. From then on the waiter receives notifications.
pub(crate) async fn waiting(
    server: &PostgresServer,
    client: &LockClient,
    held: usize,
) -> JoinHandle<Result<LockGuard>> {
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    let all = (held + 2).to_string();
    block_in_place(|| until("it waits", MINUTE, || server.psql(locks).unwrap() == all));
    waiting
}

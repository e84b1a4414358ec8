use std::time::{Duration, Instant};

use leasehold_core::{LockClient, LockGuard, Result, Ttl};
use leasehold_integration::{leftovers, server::PostgresServer, worker::client};
use leasehold_postgres::PostgresBackend;
use tokio::task::{JoinHandle, block_in_place};

use crate::support::{PATIENCE, until};

/// So long that nobody looks by itself before the test is over: an eighth of it at the earliest.
pub(super) const HOUR: u64 = 3_600_000;

/// For what must happen at all, on a machine that builds something else beside.
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// The backends that hold the lock of this name, by the key that any SQL client computes.
pub(super) fn holders(server: &PostgresServer, name: &str) -> Vec<u32> {
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

/// The one that holds it.
#[track_caller]
pub(super) fn holder(server: &PostgresServer, name: &str) -> u32 {
    match holders(server, name)[..] {
        [pid] => pid,
        ref pids => panic!("{name} is held by {pids:?}"),
    }
}

/// Connections of clients, but for the one that asks.
pub(super) fn connections(server: &PostgresServer) -> Vec<String> {
    let rows = server.psql(
        "SELECT pid, application_name, state, query FROM pg_stat_activity \
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    );
    rows.unwrap().lines().map(str::to_owned).collect()
}

/// No advisory lock is left on this server, after `patience` at the latest.
#[track_caller]
pub(super) fn nothing_left(server: &PostgresServer, patience: Duration) {
    leftovers::nothing_left(patience, || leftovers::postgres(server)).unwrap();
}

/// Of all advisory locks on this server only those of these names are left, soon.
#[track_caller]
pub(super) fn only_left(server: &PostgresServer, names: &[&str]) {
    let until = Instant::now() + PATIENCE;
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
            "{all:?} are left, and not only {names:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A client with the defaults, or why there is none.
pub(super) async fn connect(url: &str) -> Result<LockClient> {
    PostgresBackend::connect(url).await.map(LockClient::new)
}

/// A client with this TTL. A machine that builds something else beside may take longer to connect
/// than a user would wait.
pub(super) async fn client_of(url: &str, ttl_ms: u64) -> LockClient {
    let ttl = Ttl::from_millis(ttl_ms).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        match client(url, ttl, "test").await {
            Err(error) if error.is_retryable() && Instant::now() < end => {}
            connected => return connected.unwrap(),
        }
    }
}

/// Waits for the lock `k` until its signs are up beside the `held` locks that there are: that is
/// what it does when it can be told.
pub(super) async fn waiting(
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

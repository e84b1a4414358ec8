//! Tokens across crashes of the server.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use leasehold_core::LockClient;
use leasehold_integration::{
    panics::nothing_panicked,
    server::PostgresServer,
    steps::{is_a_fault, millis, token},
};
use tokio::task::{JoinSet, block_in_place};

use crate::support::client_of;

const TTL: u64 = 5000;
const KEYS: usize = 4;
const TASKS_PER_KEY: usize = 4;

/// The number of kills, unless `LEASEHOLD_KILLS` overrides it.
const KILLS: u32 = 50;

/// The number of grants between two kills, so that each kill interrupts work.
const GRANTS: u64 = 40;

const PATIENCE: Duration = Duration::from_secs(30);

fn kills() -> u32 {
    std::env::var("LEASEHOLD_KILLS").map_or(KILLS, |kills| {
        kills.parse().expect("LEASEHOLD_KILLS must be a number")
    })
}

/// The tokens granted for one key.
#[derive(Debug, Default)]
struct Ledger {
    /// The largest token that was returned to a caller.
    largest: AtomicU64,
    all: Mutex<HashSet<u64>>,
}

#[derive(Debug, Default)]
struct Load {
    ledgers: [Ledger; KEYS],
    granted: AtomicU64,
    over: AtomicBool,
}

impl Load {
    async fn lock_again_and_again(self: Arc<Self>, client: LockClient, key: usize) {
        let (mutex, ledger) = (client.mutex(format!("k{key}")), &self.ledgers[key]);
        while !self.over.load(Ordering::Relaxed) {
            // Every token granted before this request is smaller than its token.
            let before = ledger.largest.load(Ordering::SeqCst);
            match mutex.lock_timeout(millis(2000)).await {
                Ok(Some(guard)) => {
                    let token = token(&guard);
                    assert!(token > before, "k{key}: token {token} after {before}");
                    assert!(
                        ledger.all.lock().unwrap().insert(token),
                        "k{key}: token {token} twice"
                    );
                    ledger.largest.fetch_max(token, Ordering::SeqCst);
                    self.granted.fetch_add(1, Ordering::Relaxed);
                    // The answer or the lock may be lost, which does not matter here.
                    drop(guard.release().await);
                }
                Ok(None) => tokio::time::sleep(millis(5)).await,
                Err(error) => {
                    assert!(is_a_fault(error.kind()), "{error:?}");
                    tokio::time::sleep(millis(5)).await;
                }
            }
        }
    }
}

/// Kills the server under load repeatedly. No token is repeated, and none is smaller than one
/// granted before.
async fn killed_under_load(url: impl FnOnce(&PostgresServer) -> String) {
    // Asynchronous commits are written so late that a kill is certain to lose them.
    let mut server = PostgresServer::builder()
        .durable()
        .setting("wal_writer_delay", "10s")
        .start()
        .unwrap();
    let url = block_in_place(|| url(&server));
    let load = Arc::new(Load::default());
    let mut tasks = JoinSet::new();
    for _ in 0..2 {
        let client = client_of(&url, TTL).await;
        for n in 0..KEYS * TASKS_PER_KEY / 2 {
            tasks.spawn(Arc::clone(&load).lock_again_and_again(client.clone(), n % KEYS));
        }
    }
    let (begun, mut restarting) = (Instant::now(), Duration::ZERO);
    for kill in 0..kills() {
        let target = load.granted.load(Ordering::Relaxed) + GRANTS;
        let patience = Instant::now() + PATIENCE;
        while load.granted.load(Ordering::Relaxed) < target {
            if let Some(ended) = tasks.try_join_next() {
                ended.unwrap();
            }
            assert!(Instant::now() < patience, "no grant after kill {kill}");
            tokio::time::sleep(millis(1)).await;
        }
        // The kill may hit any moment of a commit.
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..3000))).await;
        let killed = Instant::now();
        block_in_place(|| {
            server.kill();
            server.restart().unwrap();
        });
        restarting += killed.elapsed();
    }
    load.over.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let granted = load.granted.load(Ordering::Relaxed);
    println!(
        "{} kills, {granted} grants in {:?}, of these {restarting:?} of kills and restarts",
        kills(),
        begun.elapsed()
    );
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_when_the_server_is_killed_under_load() {
    killed_under_load(PostgresServer::url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_although_the_role_commits_asynchronously() {
    killed_under_load(|server| {
        server
            .psql(
                "CREATE ROLE shop LOGIN; GRANT ALL ON SCHEMA public TO shop; GRANT ALL ON DATABASE postgres TO shop; \
                 ALTER ROLE shop SET synchronous_commit = off",
            )
            .unwrap();
        server.url_as("shop")
    })
    .await;
}

/// A control: a number that was returned without being made durable is drawn again.
#[test]
fn without_a_durable_record_a_kill_makes_tokens_repeat() {
    let mut server = PostgresServer::builder()
        .durable()
        .setting("wal_writer_delay", "10s")
        .start()
        .unwrap();
    server.psql("CREATE SEQUENCE tokens; CHECKPOINT").unwrap();
    let draw = |server: &PostgresServer| {
        let mut psql = server.psql_session().unwrap();
        psql.ask("SET synchronous_commit = off", PATIENCE).unwrap();
        psql.ask("SELECT nextval('tokens')", PATIENCE)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let first = draw(&server);
    server.kill();
    server.restart().unwrap();
    assert_eq!(draw(&server), first);
}

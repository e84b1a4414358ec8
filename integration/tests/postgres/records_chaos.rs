//! Writers that are cut off, stopped, ended and restarted, compared with what the server has
//! written in which order: a trigger records each write.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use leasehold_core::LockClient;
use leasehold_integration::{
    chosen,
    proxy::{Direction, Proxy},
    server::PostgresServer,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::block_in_place;

use crate::support::{MINUTE, client_of, holders};

const WRITERS: u64 = 4;
/// Short, so that many faults last longer.
const TTL: u64 = 1_000;

/// The observations of the clients.
#[derive(Default)]
struct Seen {
    /// Writes that were confirmed: their versions and values.
    confirmed: Mutex<Vec<(u64, String)>>,
    /// The token of a holder, and the version that it read before it wrote.
    grants: Mutex<Vec<(u64, u64)>>,
}

/// A row of the history: version, token and value.
type Written = (u64, u64, String);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_records_is_that_of_their_holders() {
    let mut random = StdRng::seed_from_u64(chosen::seed());
    let mut server = PostgresServer::builder()
        .durable()
        .setting("max_connections", "300")
        .start()
        .unwrap();
    first_write(&server).await;
    let seen = Arc::new(Seen::default());
    let over = Arc::new(AtomicBool::new(false));
    let (mut proxies, mut tasks) = (Vec::new(), Vec::new());
    for writer in 0..WRITERS {
        let proxy = Proxy::start(server.addr()).unwrap();
        let url = format!(
            "{}?timeout=300ms&connect-timeout=5s",
            server.url_at(proxy.addr())
        );
        let client = client_of(&url, TTL).await;
        let random = StdRng::seed_from_u64(random.random());
        tasks.push(tokio::spawn(write_until_over(
            client,
            writer,
            random,
            Arc::clone(&seen),
            Arc::clone(&over),
        )));
        proxies.push(proxy);
    }
    let ends = Instant::now() + chosen::chaos_duration();
    while Instant::now() < ends {
        strike(&mut server, &proxies, &mut random).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
    }
    over.store(true, SeqCst);
    for task in tasks {
        let ended = tokio::time::timeout(3 * MINUTE, task).await;
        ended.expect("a writer hangs").unwrap();
    }
    check(&history(&server), &seen);
}

/// Lets Leasehold create its table, and adds the trigger that records each write.
async fn first_write(server: &PostgresServer) {
    let client = client_of(
        &format!("{}?timeout=60s&connect-timeout=60s", server.url()),
        60_000,
    )
    .await;
    let guard = client.mutex("k").lock().await.unwrap();
    guard.write_record("first").await.unwrap();
    guard.release().await.unwrap();
    client.close().await.unwrap();
    let trigger = "CREATE TABLE history (at bigserial, version int8, token int8, value bytea, held bool); \
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO public.history (version, token, value, held) \
         SELECT NEW.version, NEW.token, NEW.value, EXISTS (SELECT FROM pg_locks \
         WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' \
         AND pid = pg_backend_pid() AND (classid::int8 << 32 | objid::int8)::text = NEW.lock_key); \
         RETURN NULL; END $$; \
         CREATE TRIGGER note AFTER INSERT OR UPDATE ON leasehold_records \
         FOR EACH ROW EXECUTE FUNCTION note()";
    block_in_place(|| server.psql(trigger)).unwrap();
}

/// Injects one fault and ends it.
async fn strike(server: &mut PostgresServer, proxies: &[Proxy], random: &mut StdRng) {
    let proxy = &proxies[random.random_range(0..proxies.len())];
    let direction = Direction::ALL[random.random_range(0..Direction::ALL.len())];
    let pause = Duration::from_millis(random.random_range(1..2 * TTL));
    match random.random_range(0..20) {
        0..5 => {
            proxy.hold(direction);
            tokio::time::sleep(pause).await;
            proxy.heal();
        }
        5..9 => {
            proxy.cut_after_chunks(Direction::ClientToServer, random.random_range(0..30));
        }
        9 => proxy.disconnect(),
        10..14 => {
            for pid in block_in_place(|| holders(server, "k")) {
                let end = format!("SELECT pg_terminate_backend({pid})");
                block_in_place(|| server.psql(&end)).unwrap();
            }
        }
        14..18 => {
            let stopped = block_in_place(|| holders(server, "k"));
            let stopped: Vec<u32> = stopped
                .into_iter()
                // A process may end before it is stopped.
                .filter(|pid| server.pause_backend(*pid).is_ok())
                .collect();
            tokio::time::sleep(pause).await;
            if random.random() {
                for pid in &stopped {
                    let end = format!("SELECT pg_terminate_backend({pid})");
                    block_in_place(|| server.psql(&end)).unwrap();
                }
            }
            for pid in stopped {
                drop(server.resume_backend(pid));
            }
        }
        _ => block_in_place(|| {
            if random.random() {
                server.kill();
            }
            server.restart().unwrap();
        }),
    }
}

async fn write_until_over(
    client: LockClient,
    writer: u64,
    mut random: StdRng,
    seen: Arc<Seen>,
    over: Arc<AtomicBool>,
) {
    let mut number = 0;
    while !over.load(SeqCst) {
        let within = Duration::from_millis(500);
        let Ok(Some(guard)) = client.mutex("k").lock_timeout(within).await else {
            continue;
        };
        let token = guard.fencing_token().unwrap().get();
        if let Ok(Some(record)) = client.record("k").await
            && guard.is_held()
        {
            seen.grants.lock().unwrap().push((token, record.version));
        }
        for _ in 0..random.random_range(1..8) {
            number += 1;
            let value = format!("{writer}-{number}");
            // A write without an answer is repeated, and counts once.
            for _ in 0..random.random_range(1..4) {
                if let Ok(version) = guard.write_record(&value).await {
                    seen.confirmed.lock().unwrap().push((version, value));
                    break;
                }
            }
            if random.random_ratio(1, 4) {
                tokio::time::sleep(Duration::from_millis(random.random_range(0..TTL))).await;
            }
        }
        if random.random() {
            drop(guard.release().await);
        }
    }
}

/// Returns all writes in the order of their versions.
fn history(server: &PostgresServer) -> Vec<Written> {
    let sql = "SELECT version, token, convert_from(value, 'UTF8'), held FROM history ORDER BY at";
    let rows = block_in_place(|| server.psql(sql)).unwrap();
    rows.lines()
        .map(|row| {
            let mut columns = row.split('|');
            let mut next = || columns.next().unwrap().to_owned();
            let (version, token, value) = (next(), next(), next());
            assert_eq!(
                next(),
                "t",
                "version {version} was written without the lock"
            );
            (version.parse().unwrap(), token.parse().unwrap(), value)
        })
        .collect()
}

fn check(history: &[Written], seen: &Seen) {
    let confirmed = seen.confirmed.lock().unwrap();
    println!("{} writes, {} confirmed", history.len(), confirmed.len());
    assert!(!confirmed.is_empty(), "no write was confirmed");
    for (one, next) in history.iter().zip(&history[1..]) {
        assert_eq!(next.0, one.0 + 1, "a version is missing or repeated");
        assert!(next.1 >= one.1, "{next:?} by a former holder after {one:?}");
    }
    let mut values: Vec<&str> = history.iter().map(|(_, _, value)| value.as_str()).collect();
    values.sort_unstable();
    let all = values.len();
    values.dedup();
    assert_eq!(values.len(), all, "a repeated write counted twice");
    let at = |version: u64| history.iter().find(|written| written.0 == version);
    for (version, value) in confirmed.iter() {
        let written = at(*version).map(|(_, _, value)| value);
        assert_eq!(written, Some(value), "version {version} was confirmed");
    }
    for (token, read) in seen.grants.lock().unwrap().iter() {
        for (version, by, _) in history.iter().filter(|written| written.0 > *read) {
            assert!(
                by >= token,
                "version {version} was written by {by}, after the holder {token} had read {read}"
            );
        }
    }
}

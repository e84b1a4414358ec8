//! Writers that are cut off, held up, revoked and restarted, compared with what the server has done
//! in which order: its append-only file has every command that changed something.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use leasehold_core::{LockClient, LockGuard, Record, Revocation};
use leasehold_integration::{
    chosen,
    proxy::{Direction, Proxy},
};
use leasehold_redis::RedisBackend;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::{Server, ttl};

const WRITERS: u64 = 4;
/// Short, so that many faults last longer.
const TTL: u64 = 600;

/// The value of the last write.
const THE_END: &str = "the end";

/// The observations of the clients.
#[derive(Default)]
struct Seen {
    /// Writes that were confirmed: their values and versions.
    confirmed: Mutex<Vec<(String, u64)>>,
    /// The versions that each reader has read, with what was confirmed before.
    reads: Mutex<Vec<(u64, Record)>>,
}

/// A command of the append-only file.
type Command = Vec<Vec<u8>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_records_is_that_of_their_holders() {
    let mut random = StdRng::seed_from_u64(chosen::seed());
    let mut server = Server::with(&[
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--auto-aof-rewrite-percentage",
        "0",
    ]);
    let seen = Arc::new(Seen::default());
    let over = Arc::new(AtomicBool::new(false));
    let (mut proxies, mut tasks, mut watchers) = (Vec::new(), Vec::new(), Vec::new());
    for writer in 0..WRITERS {
        let proxy = Proxy::start(server.address()).unwrap();
        // Only notifications of the server and lost connections end a watch.
        let url = format!(
            "redis://{}/?timeout=300ms&connect-timeout=300ms&fallback-poll-interval=3600s",
            proxy.addr()
        );
        let backend = RedisBackend::connect(&url).await.unwrap();
        let client = LockClient::builder(backend).with_ttl(ttl(TTL)).build();
        let random = StdRng::seed_from_u64(random.random());
        tasks.push(tokio::spawn(write_until_over(
            client.clone(),
            writer,
            random,
            Arc::clone(&seen),
            Arc::clone(&over),
        )));
        watchers.push(tokio::spawn(watch_until_the_end(client.clone())));
        tasks.push(tokio::spawn(read_until_over(
            client,
            Arc::clone(&seen),
            Arc::clone(&over),
        )));
        proxies.push(proxy);
    }

    let ends = Instant::now() + chosen::chaos_duration();
    while Instant::now() < ends {
        strike(&mut server, &proxies, &mut random).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
    }
    over.store(true, SeqCst);
    for task in tasks {
        let ended = tokio::time::timeout(Duration::from_secs(60), task).await;
        ended.expect("a task hangs").unwrap();
    }
    let last = LockClient::new(server.backend().await);
    let guard = last.mutex("k").lock().await.unwrap();
    guard.write_record(THE_END).await.unwrap();
    for watcher in watchers {
        let ended = tokio::time::timeout(Duration::from_secs(60), watcher).await;
        ended.expect("a watcher missed the last write").unwrap();
    }
    check(&server.commands(), &seen);
}

/// Watches the record until the last write. Versions grow.
async fn watch_until_the_end(client: LockClient) {
    let (mut watch, mut version) = (client.watch("k"), 0);
    loop {
        // Faults are retried within.
        if let Some(record) = watch.next().await.unwrap() {
            assert!(
                record.version > version,
                "{} after {version}",
                record.version
            );
            version = record.version;
            if record.value == THE_END.as_bytes() {
                return;
            }
        }
    }
}

/// Injects one fault and ends it.
async fn strike(server: &mut Server, proxies: &[Proxy], random: &mut StdRng) {
    let proxy = &proxies[random.random_range(0..proxies.len())];
    let direction = Direction::ALL[random.random_range(0..Direction::ALL.len())];
    let pause = Duration::from_millis(random.random_range(1..2 * TTL));
    match random.random_range(0..20) {
        0..6 => {
            proxy.hold(direction);
            tokio::time::sleep(pause).await;
            proxy.heal();
        }
        6..9 => {
            proxy.blackhole(direction);
            tokio::time::sleep(pause).await;
            proxy.heal();
        }
        9..13 => {
            let chunks = random.random_range(0..30);
            proxy.cut_after_chunks(Direction::ClientToServer, chunks);
        }
        13 => proxy.disconnect(),
        14..18 => {
            // The client of an operator, which is not cut off.
            let client = LockClient::new(server.backend().await);
            let holders = client.inspect("k").await.unwrap().holders;
            if let Some(holder) = holders.first() {
                let how = if random.random() {
                    Revocation::Immediate
                } else {
                    Revocation::Graceful
                };
                client.revoke(holder, how).await.unwrap();
            }
        }
        18 => {
            server.signal("STOP");
            tokio::time::sleep(pause).await;
            server.signal("CONT");
        }
        _ => server.restart(),
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
        for _ in 0..random.random_range(1..10) {
            number += 1;
            let value = format!(
                "{writer}-{number}-{}",
                "x".repeat(random.random_range(0..3_000))
            );
            write(&guard, &value, &mut random, &seen).await;
            if random.random_ratio(1, 4) {
                tokio::time::sleep(Duration::from_millis(random.random_range(0..TTL))).await;
            }
        }
        if random.random() {
            drop(guard.release().await);
        }
    }
}

/// Writes a value, and repeats the write while it is unknown whether it took effect.
async fn write(guard: &LockGuard, value: &str, random: &mut StdRng, seen: &Seen) {
    loop {
        if random.random_ratio(1, 10) {
            // A dropped write completes in the background.
            let limit = Duration::from_micros(random.random_range(0..2_000));
            if tokio::time::timeout(limit, guard.write_record(value))
                .await
                .is_err()
            {
                return;
            }
        }
        match guard.write_record(value).await {
            Ok(version) => {
                let mut confirmed = seen.confirmed.lock().unwrap();
                confirmed.push((value.to_owned(), version));
                return;
            }
            Err(error) if error.is_retryable() && random.random_ratio(3, 4) => {}
            Err(_) => return,
        }
    }
}

async fn read_until_over(client: LockClient, seen: Arc<Seen>, over: Arc<AtomicBool>) {
    while !over.load(SeqCst) {
        let confirmed = {
            let confirmed = seen.confirmed.lock().unwrap();
            confirmed.iter().map(|(_, version)| *version).max()
        };
        if let Ok(Some(record)) = client.record("k").await {
            let mut reads = seen.reads.lock().unwrap();
            reads.push((confirmed.unwrap_or(0), record));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Checks each write of the record against the holder of the lock at that moment, and what the
/// clients have seen against all writes.
fn check(commands: &[Command], seen: &Seen) {
    let mut holder: Vec<u8> = Vec::new();
    let mut sequences: HashMap<Vec<u8>, u64> = HashMap::new();
    let (mut version, mut token) = (0, 0);
    let mut values: HashMap<u64, String> = HashMap::new();
    for command in commands {
        match command.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] {
            [b"SET", b"k", value, ..] => holder = value.to_vec(),
            [b"DEL" | b"UNLINK", b"k"] => holder.clear(),
            [b"SET", b"{k}:lh2:record", record, ..] => {
                let end = record.iter().position(|byte| *byte == b'\n').unwrap();
                let header = std::str::from_utf8(&record[..end]).unwrap();
                let fields: Vec<_> = header.split(' ').collect();
                let [_, at, sequence, owner, fence, _, label, _] = fields[..] else {
                    panic!("{header}")
                };
                let at: u64 = at.parse().unwrap();
                assert_eq!(at, version + 1, "the versions have no gap");
                version = at;
                let holds = holder.strip_prefix(b"revoked:").unwrap_or(&holder);
                assert!(
                    holds.starts_with(owner.as_bytes()),
                    "`{header}` was written while `{}` held the lock",
                    holder.escape_ascii()
                );
                let fence: u64 = fence.parse().unwrap();
                assert!(fence >= token, "token {fence} after {token}");
                token = fence;
                let last = sequences.entry(owner.as_bytes().to_vec()).or_default();
                let sequence: u64 = sequence.parse().unwrap();
                assert!(sequence > *last, "sequence {sequence} after {last}");
                *last = sequence;
                let value = &record[end + 1 + label.parse::<usize>().unwrap()..];
                values.insert(version, String::from_utf8(value.to_vec()).unwrap());
            }
            _ => {}
        }
    }
    let confirmed = seen.confirmed.lock().unwrap();
    for (value, version) in &*confirmed {
        assert!(values.get(version) == Some(value), "{version} was lost");
    }
    let reads = seen.reads.lock().unwrap();
    for (confirmed, record) in &*reads {
        assert!(record.version >= *confirmed, "an old record was read");
        let value = std::str::from_utf8(&record.value).unwrap();
        assert!(values.get(&record.version).is_some_and(|is| is == value));
    }
    println!(
        "{version} writes, {} confirmed, {} owners, {} reads",
        confirmed.len(),
        sequences.len(),
        reads.len()
    );
    assert!(confirmed.len() > 20 && reads.len() > 20 && sequences.len() > 5);
}

//! No waiter starves, and killed waiters delay others only briefly. The bounds are numbers of
//! hand-offs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::support::{Server, granted, granted_to, key, refused, request, ttl, until};
use leasehold_core::{
    LockClient, Mode,
    backend::{Attempt, LockBackend, Request},
    quorum::Provision,
};
use leasehold_redis::{RedisBackend, redis};
use tokio::task::JoinSet;

/// The largest number of hand-offs that may pass a waiter. Each of three other processes may be
/// granted the lock four times in a row, and four times when its own waiter is ahead. Twice that
/// leaves room for a slow machine.
const HAND_OFFS: u64 = 50;
/// The time limit of a test. A waiter that does not starve needs far less.
const STARVED: u64 = 2_000;
const HOUR: u64 = 3_600_000;
const MODES: [Mode; 3] = [
    Mode::Exclusive,
    Mode::Shared,
    Mode::Permit {
        of: std::num::NonZeroU32::MIN,
    },
];

/// Writing tasks of several processes, as the server sees them, that count their grants.
struct Writers {
    granted: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Writers {
    async fn begin(clients: &[LockClient], tasks: usize) -> Self {
        let mut writers = Self {
            granted: Arc::default(),
            over: Arc::default(),
            tasks: JoinSet::new(),
        };
        for client in clients {
            for _ in 0..tasks {
                let (mutex, granted) = (client.rwlock("k"), Arc::clone(&writers.granted));
                let over = Arc::clone(&writers.over);
                writers.tasks.spawn(async move {
                    while !over.load(Relaxed) {
                        let guard = mutex.write().await.unwrap();
                        granted.fetch_add(1, Relaxed);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        guard.release().await.unwrap();
                    }
                });
            }
        }
        let granted = Arc::clone(&writers.granted);
        until("the writers are at work", || async {
            granted.load(Relaxed) > 50
        })
        .await;
        writers
    }

    /// Returns how many grants pass by during this acquisition.
    async fn passed<T>(&self, acquisition: impl Future<Output = T>) -> Option<u64> {
        let before = self.granted.load(Relaxed);
        let starved = async {
            while self.granted.load(Relaxed) < before + STARVED {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            acquired = acquisition => {
                drop(acquired);
                Some(self.granted.load(Relaxed) - before)
            }
            () = starved => None,
        }
    }

    async fn end(mut self) {
        self.over.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

async fn clients(server: &Server, count: usize) -> Vec<LockClient> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(LockClient::new(server.backend().await));
    }
    clients
}

async fn quorum_clients(servers: &[Server], count: usize) -> Vec<LockClient> {
    let hosts: Vec<_> = servers
        .iter()
        .map(|server| server.address().to_string())
        .collect();
    let url = format!("redlock://{}/?node-timeout=10s", hosts.join(","));
    let mut clients = Vec::new();
    for at in 0..count {
        let quorum = leasehold_redis::redlock(&url).await.unwrap();
        if at == 0 {
            quorum
                .provision(&Provision::new(ttl(HOUR)).with_never_used(true))
                .await
                .unwrap();
        }
        clients.push(LockClient::new(quorum));
    }
    clients
}

/// Returns the hand-offs that pass a reader beside these writers, for each of 20 acquisitions.
async fn reader_beside(others: &[LockClient], reader: &LockClient, tasks: usize) -> Vec<u64> {
    let writers = Writers::begin(others, tasks).await;
    let lock = reader.rwlock("k");
    let mut seen = Vec::new();
    for _ in 0..20 {
        let passed = writers
            .passed(async { lock.read().await.unwrap().release().await.unwrap() })
            .await;
        seen.push(passed.expect("the reader starves"));
    }
    writers.end().await;
    println!("hand-offs that the reader saw pass by: {seen:?}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_beside_writers_of_three_processes_is_not_starved() {
    let server = Server::start();
    let (others, reader) = (
        clients(&server, 3).await,
        clients(&server, 1).await.remove(0),
    );
    let seen = reader_beside(&others, &reader, 8).await;
    assert!(seen.iter().all(|passed| *passed <= HAND_OFFS), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_beside_writers_is_not_starved_on_a_quorum() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let clients = quorum_clients(&servers, 4).await;
    let (reader, others) = clients.split_first().unwrap();
    let seen = reader_beside(others, reader, 8).await;
    // A vote may be split repeatedly, and each split vote gives up the positions at the nodes that
    // granted it.
    assert!(
        seen.iter().all(|passed| *passed <= 4 * HAND_OFFS),
        "{seen:?}"
    );
}

/// Returns the hand-offs that pass a waiter beside a task that repeats `try_lock`, for each of 10
/// acquisitions.
async fn waiter_beside_tries(trying: &LockClient, waiting: &LockClient) -> Vec<u64> {
    let (granted, over): (Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
    let tries = {
        let (mutex, granted, over) = (trying.mutex("k"), Arc::clone(&granted), Arc::clone(&over));
        tokio::spawn(async move {
            while !over.load(Relaxed) {
                if let Some(guard) = mutex.try_lock().await.unwrap() {
                    granted.fetch_add(1, Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    guard.release().await.unwrap();
                }
            }
        })
    };
    let writers = Writers {
        granted: Arc::clone(&granted),
        over,
        tasks: JoinSet::new(),
    };
    until("the tries are at work", || async {
        granted.load(Relaxed) > 10
    })
    .await;
    let (lock, mut seen) = (waiting.mutex("k"), Vec::new());
    for _ in 0..10 {
        let passed = writers
            .passed(async { lock.lock().await.unwrap().release().await.unwrap() })
            .await;
        seen.push(passed.expect("the waiter starves"));
    }
    writers.end().await;
    tries.await.unwrap();
    println!("hand-offs that the waiter saw pass by: {seen:?}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_tries_starves_no_waiter_of_any_process() {
    let server = Server::start();
    let two = clients(&server, 2).await;
    for waiting in &two {
        let seen = waiter_beside_tries(&two[0], waiting).await;
        assert!(seen.iter().all(|passed| *passed <= HAND_OFFS), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_tries_starves_no_waiter_of_a_quorum() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let two = quorum_clients(&servers, 2).await;
    let seen = waiter_beside_tries(&two[0], &two[1]).await;
    assert!(
        seen.iter().all(|passed| *passed <= 4 * HAND_OFFS),
        "{seen:?}"
    );
}

#[tokio::test]
async fn behind_a_holder_without_an_end_the_earlier_waiter_is_first() {
    let server = Server::start();
    let (b, c) = (server.backend().await, server.backend().await);
    let mut raw = server.raw().await;
    let mut first = Vec::new();
    for _ in 0..6 {
        () = redis::cmd("SET")
            .arg("k")
            .arg("5f0e")
            .query_async(&mut raw)
            .await
            .unwrap();
        let mut tasks = JoinSet::new();
        for (name, backend, waiters) in [("earlier", &b, 1), ("later", &c, 2)] {
            let waiting = Arc::clone(backend).acquire(request("k"));
            tasks.spawn(async move {
                let lease = waiting.await.unwrap();
                (name, lease)
            });
            until("registered", || async {
                b.inspect(&key("k")).await.unwrap().waiters.len() == waiters
            })
            .await;
        }
        () = redis::cmd("DEL")
            .arg("k")
            .query_async(&mut raw)
            .await
            .unwrap();
        while let Some(ended) = tasks.join_next().await {
            let (name, lease) = ended.unwrap();
            first.push(name);
            lease.release().await.unwrap();
        }
    }
    assert_eq!(first, ["earlier", "later"].repeat(6));
}

/// No key beside the lock outlives its last use by more than its TTL and a second.
#[tokio::test]
async fn the_lifetime_of_the_bookkeeping_does_not_grow_with_its_use() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    let permits = Mode::Permit {
        of: 2.try_into().unwrap(),
    };
    for (mode, nodes) in [(Mode::Shared, &[false, true][..]), (permits, &[false])] {
        for node in nodes.iter().copied() {
            let wanted = request("k").with_mode(mode).with_ttl(ttl(30_000));
            let held = granted_to(&backend, wanted.clone(), node).await;
            for _ in 0..20 {
                let other = granted_to(&backend, wanted.as_new_owner(), node).await;
                Arc::clone(&other).renew().await.unwrap();
                other.release().await.unwrap();
            }
            for name in server
                .leftovers()
                .await
                .iter()
                .filter(|name| name.contains(":lh2:"))
            {
                let left: i64 = redis::cmd("PTTL")
                    .arg(name)
                    .query_async(&mut raw)
                    .await
                    .unwrap();
                assert!(left <= 31_000, "{name} lives for {left} ms");
            }
            held.release().await.unwrap();
        }
    }
}

/// A generator of pseudo-random numbers with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Runs readers and writers in several processes, with random hold times, while waiters are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_readers_writers_and_killed_waiters_nobody_is_starved() {
    const PROCESSES: u64 = 4;
    const TASKS: u64 = 6;
    const ROUNDS: u64 = 40;
    // The number of shared locks among ten locks of each process. With as many readers as writers,
    // there are moments without a waiting writer, and they would hide that a reader starves.
    const READS: [u64; PROCESSES as usize] = [8, 1, 0, 0];
    let server = Server::start();
    let killed = server.backend().await;
    let granted: Arc<AtomicU64> = Arc::default();
    let mut tasks = JoinSet::new();
    for (process, client) in clients(&server, PROCESSES as usize)
        .await
        .into_iter()
        .enumerate()
    {
        for task in 0..TASKS {
            let (client, granted) = (client.clone(), Arc::clone(&granted));
            let mut random = Random(process as u64 * TASKS + task);
            tasks.spawn(async move {
                let (lock, semaphore) = (client.rwlock("k"), client.semaphore("k", 1));
                let mut worst = 0;
                for _ in 0..ROUNDS {
                    let before = granted.load(Relaxed);
                    let (guard, permit) = match random.below(11) {
                        0 => (None, Some(semaphore.acquire().await.unwrap())),
                        at if at <= READS[process] => (Some(lock.read().await.unwrap()), None),
                        _ => (Some(lock.write().await.unwrap()), None),
                    };
                    worst = worst.max(granted.fetch_add(1, Relaxed) - before);
                    tokio::time::sleep(Duration::from_micros(random.below(2_000))).await;
                    if let Some(guard) = guard {
                        guard.release().await.unwrap();
                    }
                    if let Some(permit) = permit {
                        permit.release().await.unwrap();
                    }
                }
                worst
            });
        }
    }
    let (mut random, mut deaths, mut worst) = (Random(7), 0, 0);
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    while !tasks.is_empty() {
        tokio::select! {
            () = tokio::time::sleep_until(end) => panic!("{} tasks hang", tasks.len()),
            ended = tasks.join_next() => worst = worst.max(ended.unwrap().unwrap()),
            () = tokio::time::sleep(Duration::from_millis(40)) => {
                let mode = MODES[random.below(3) as usize];
                let request = request("k").with_mode(mode).with_ttl(ttl(HOUR)).with_waiting(|waiting| waiting.keeps_waiting = true);
                match Arc::clone(&killed).try_acquire(request).await.unwrap() {
                    Attempt::Granted(lease) => drop(lease.release().await.unwrap()),
                    Attempt::Contended(_) => deaths += 1,
                }
            }
        }
    }
    println!("{deaths} killed waiters; at most {worst} hand-offs passed by");
    assert!(deaths > 5, "nobody was killed");
    // A task may wait behind all other tasks of its process, and each of these behind two quotas of
    // every process.
    assert!(worst <= TASKS * PROCESSES * 8, "{worst}");
}

/// Leaves a registration on the server, as a killed waiter does.
async fn dead_waiter(backend: &Arc<RedisBackend>, mode: Mode) {
    refused(
        backend,
        request("k")
            .with_mode(mode)
            .with_waiting(|waiting| waiting.keeps_waiting = true),
    )
    .await;
}

/// Acquires the lock and returns how often it was refused.
async fn refusals(backend: &Arc<RedisBackend>, request: Request) -> u32 {
    let mut refusals = 0;
    let mut wanted = request.with_waiting(|waiting| waiting.keeps_waiting = true);
    loop {
        match Arc::clone(backend)
            .try_acquire(wanted.clone())
            .await
            .unwrap()
        {
            Attempt::Granted(lease) => {
                lease.release().await.unwrap();
                return refusals;
            }
            Attempt::Contended(contention) => {
                refusals += 1;
                assert!(refusals < 20, "the dead go first for ever");
                let again = contention.retry_after.unwrap();
                assert!(
                    again < Duration::from_secs(1),
                    "a dead waiter is waited for as long as a living one: {again:?}"
                );
                tokio::time::sleep(again).await;
                wanted = wanted.with_waiting(|waiting| waiting.yields = false);
            }
        }
    }
}

#[tokio::test]
async fn a_killed_waiter_slows_nobody_more_than_once() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    for mode in MODES {
        // Readers do not yield here. A killed reader is ahead of writers that do.
        let wanted = request("k").with_mode(mode).with_ttl(ttl(HOUR));
        let holder = if mode == Mode::Shared {
            wanted.clone().with_mode(Mode::Exclusive)
        } else {
            wanted.clone()
        };
        let held = granted(&a, holder.clone()).await;
        for _ in 0..3 {
            dead_waiter(&b, mode).await;
        }
        held.release().await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..10 {
            seen.push(
                refusals(
                    &a,
                    holder
                        .as_new_owner()
                        .with_waiting(|waiting| waiting.yields = true),
                )
                .await,
            );
        }
        // The first refusal finds that they were killed. A slow machine may need a second one.
        assert!(seen.iter().sum::<u32>() <= 2, "{mode}: {seen:?}");
    }
}

#[tokio::test]
async fn a_killed_writer_keeps_no_reader_from_a_free_lock() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let held = granted(&a, request("k").with_ttl(ttl(HOUR))).await;
    dead_waiter(&b, Mode::Exclusive).await;
    held.release().await.unwrap();
    let refusals = refusals(&a, request("k").with_mode(Mode::Shared)).await;
    assert!(refusals <= 2, "{refusals}");
}

/// Returns the registrations on the lists of `k`, each with its remaining milliseconds.
async fn registrations(server: &Server) -> Vec<i64> {
    let mut raw = server.raw().await;
    let mut lives = Vec::new();
    for list in ["writers", "waiters", "queue"] {
        let (secs, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut raw).await.unwrap();
        let members: Vec<(String, f64)> = redis::cmd("ZRANGE")
            .arg(format!("{{k}}:lh2:{list}"))
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES")
            .query_async(&mut raw)
            .await
            .unwrap();
        lives.extend(
            members
                .into_iter()
                .map(|(_, until)| until as i64 - secs * 1000 - micros / 1000),
        );
    }
    lives
}

/// The time for which a registration may outlive its waiter.
const LIFE: i64 = 5_000;

#[tokio::test]
async fn a_registration_ends_within_seconds_whatever_the_ttl() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let mut raw = server.raw().await;
    for mode in MODES {
        let held = granted(
            &a,
            request("k")
                .with_ttl(ttl(HOUR))
                .with_mode(holder_against(mode)),
        )
        .await;
        refused(
            &b,
            request("k")
                .with_mode(mode)
                .with_ttl(ttl(HOUR))
                .with_waiting(|waiting| waiting.keeps_waiting = true),
        )
        .await;
        let lives = registrations(&server).await;
        assert!(
            !lives.is_empty() && lives.iter().all(|lives| *lives <= LIFE),
            "{mode}: {lives:?}"
        );
        for list in ["writers", "waiters", "queue", "order"] {
            let left: i64 = redis::cmd("PTTL")
                .arg(format!("{{k}}:lh2:{list}"))
                .query_async(&mut raw)
                .await
                .unwrap();
            assert!(
                (-2..=LIFE).contains(&left) && left != -1,
                "{mode}: {list} stays for {left} ms"
            );
        }
        held.release().await.unwrap();
        () = redis::cmd("FLUSHALL").query_async(&mut raw).await.unwrap();
    }
}

/// Returns the mode of a holder for which a waiter of `mode` waits.
fn holder_against(mode: Mode) -> Mode {
    if mode == Mode::Shared {
        Mode::Exclusive
    } else {
        mode
    }
}

#[tokio::test]
async fn a_living_waiter_of_any_mode_stays_registered() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let mut raw = server.raw().await;
    for (name, mode) in ["w", "r", "p"].into_iter().zip(MODES) {
        let held = granted(
            &a,
            request(name)
                .with_mode(holder_against(mode))
                .with_ttl(ttl(HOUR)),
        )
        .await;
        let waiting = request(name).with_mode(mode);
        drop(tokio::spawn(Arc::clone(&b).acquire(waiting)));
        std::mem::forget(held);
    }
    let lists = ["{w}:lh2:writers", "{r}:lh2:waiters", "{p}:lh2:queue"];
    for list in lists {
        until("registered", || async {
            !a.inspect(&key(&list[1..2]))
                .await
                .unwrap()
                .waiters
                .is_empty()
        })
        .await;
    }
    // Each registration is renewed before it expires.
    let mut scores = [0.0; 3];
    let mut renewed = [0; 3];
    while renewed.iter().any(|renewed| *renewed < 3) {
        for (at, list) in lists.iter().enumerate() {
            let members: Vec<(String, f64)> = redis::cmd("ZRANGE")
                .arg(list)
                .arg(0)
                .arg(-1)
                .arg("WITHSCORES")
                .query_async(&mut raw)
                .await
                .unwrap();
            let [(_, score)] = members.as_slice() else {
                panic!("{list}: {members:?} after {} renewals", renewed[at])
            };
            if *score > scores[at] {
                (scores[at], renewed[at]) = (*score, renewed[at] + 1);
            }
            let (secs, _): (f64, f64) = redis::cmd("TIME").query_async(&mut raw).await.unwrap();
            assert!(
                *score > secs * 1000.0,
                "{list}: over after {} renewals",
                renewed[at]
            );
            assert!(
                *score < secs * 1000.0 + 60_000.0,
                "{list}: never to be renewed"
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

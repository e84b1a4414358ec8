//! Chaos on every backend: readers and writers in several processes, with random faults of the
//! servers and of the processes.
//!
//! A run lasts 10 s, or `LEASEHOLD_CHAOS_SECONDS`. Each [`Target`] defines the faults of its
//! servers. The faults of processes are the same everywhere: pauses, kills, dropped acquisitions,
//! and graceful revocations of the holder.

mod elections;
mod etcd;
mod files;
mod memory;
mod postgres;
mod redis;
mod redlock;
mod zookeeper;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use leasehold_core::{ErrorKind, LockClient, Revocation};
use leasehold_integration::{
    checker::{self, Order, grants_between},
    chosen::{chaos_duration, seed},
    stage::{Stage, granted},
    steps::{client_of, millis},
    worker::{Answer, Command, Event, EventLog, Op, Patience, Phase, Storm, Worker, now_ns},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::runtime::Runtime;

use crate::chaos::{none, only_faults};

const PROCESSES: usize = 4;
/// The number of tasks per process. Half of them read, so that readers and writers wait for each
/// other.
const TASKS: u32 = 8;
const READERS: u32 = 4;
/// The timeout of one acquisition.
const WITHIN_MS: u64 = 20_000;
/// The timeout for a storm to end. Pending acquisitions end at their own timeouts.
const STORM_END: Duration = Duration::from_secs(120);
/// The number of grants without which a storm has tested nothing. It lasts longer on a slow
/// machine.
const ENOUGH: usize = 20;
/// The timeout for this number of grants.
const GRANTS_WITHIN: Duration = Duration::from_secs(300);
/// The maximum number of hand-offs past a waiter without faults. A starved waiter sees thousands.
const HAND_OFFS: usize = 500;
/// The timeout of a lone waiter that is eventually granted.
const LONE_WAITER: Duration = Duration::from_secs(180);

/// A backend under faults.
trait Target: Send {
    /// Returns the URL for a worker. Workers use different routes, so that some can be cut.
    fn url(&self, worker: usize) -> String;

    /// Returns the TTL of all locks in milliseconds.
    fn ttl_ms(&self) -> u64;

    /// Injects one fault and waits for its end.
    fn strike(&mut self, rng: &mut StdRng);

    /// Ends all faults and waits until the backend serves.
    fn settle(&mut self);
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Returns the work of each process.
fn storm() -> Storm {
    Storm {
        tasks: TASKS,
        readers: READERS,
        long_in: 100,
        drop_in: 10,
        key: "k".into(),
        within_ms: WITHIN_MS,
        hold_us: 2000,
        write: true,
        election: false,
    }
}

/// Worker processes in a storm. Some are killed and replaced under another name.
struct Crew<'a> {
    stage: &'a Stage,
    urls: Vec<String>,
    workers: Vec<Worker>,
    names: Vec<String>,
    storm: Storm,
}

impl<'a> Crew<'a> {
    fn new(stage: &'a Stage, urls: Vec<String>, storm: Storm) -> Self {
        let mut crew = Self {
            stage,
            urls,
            workers: Vec::new(),
            names: Vec::new(),
            storm,
        };
        for at in 0..PROCESSES {
            let worker = crew.hire(at);
            crew.workers.push(worker);
        }
        crew
    }

    /// Starts a worker, retrying while the backend is faulty.
    fn hire(&mut self, at: usize) -> Worker {
        let end = Instant::now() + LONE_WAITER;
        loop {
            let name = format!("p{}", self.names.len());
            self.names.push(name.clone());
            match self.stage.try_worker_at(&name, &self.urls[at]) {
                Ok(mut worker) => {
                    assert!(matches!(
                        worker.ask(Command::Storm(self.storm.clone())).unwrap(),
                        Answer::Storming
                    ));
                    return worker;
                }
                Err(error) => assert!(Instant::now() < end, "no worker can be started: {error}"),
            }
        }
    }

    /// Returns the worker that was elected last, which probably leads.
    fn leader(&self) -> Option<usize> {
        let events = self.events();
        let elected = |event: &&Event| (event.op, event.phase) == (Op::Acquire, Phase::Ok);
        let last = events.iter().rfind(elected)?;
        (self.workers.iter()).position(|worker| worker.setup().proc == last.proc)
    }

    /// Injects one fault into the processes and waits for its end.
    fn strike(&mut self, rng: &mut StdRng, ttl_ms: u64) {
        thread::sleep(millis(rng.random_range(50..500)));
        let any = rng.random_range(0..PROCESSES);
        let at = if self.storm.election && rng.random() {
            self.leader().unwrap_or(any)
        } else {
            any
        };
        match rng.random_range(0..3) {
            0 | 1 => {
                // All but one: the holder is probably paused, and the remaining one acquires its
                // lock.
                let stopped: Vec<_> = (0..PROCESSES).filter(|worker| *worker != at).collect();
                stopped
                    .iter()
                    .for_each(|worker| self.workers[*worker].pause().unwrap());
                thread::sleep(millis(rng.random_range(ttl_ms / 10..ttl_ms * 3 / 2)));
                stopped
                    .iter()
                    .for_each(|worker| self.workers[*worker].resume().unwrap());
            }
            _ => {
                self.workers[at].kill().unwrap();
                self.workers[at] = self.hire(at);
            }
        }
    }

    /// Ends the storm. Returns the grants of the surviving workers, and the errors by kind.
    fn end(&mut self) -> (u64, BTreeMap<String, u64>) {
        let tickets: Vec<_> = self
            .workers
            .iter_mut()
            .map(|worker| worker.send(Command::Calm).unwrap())
            .collect();
        let (mut total, mut by_kind) = (0, BTreeMap::new());
        for (worker, ticket) in self.workers.iter_mut().zip(tickets) {
            match worker.answer(ticket, STORM_END).expect("the storm hangs") {
                Answer::Storm {
                    granted, errors, ..
                } => {
                    total += granted;
                    errors
                        .into_iter()
                        .for_each(|(kind, count)| *by_kind.entry(kind).or_default() += count);
                }
                other => panic!("{other:?}"),
            }
        }
        (total, by_kind)
    }

    /// Returns the number of grants so far.
    fn grants(&self) -> usize {
        grants_between(&self.events(), |_| true, 0, u64::MAX)
    }

    fn events(&self) -> Vec<Event> {
        let logs: Vec<_> = self
            .names
            .iter()
            .map(|name| self.stage.log(name))
            .filter(|log| log.exists())
            .collect();
        EventLog::merge(&logs).unwrap()
    }
}

/// Revokes the holder's lock gracefully until `over`. Returns the number of revocations.
async fn revoke(client: &LockClient, seed: u64, over: &AtomicBool) -> usize {
    let (mut rng, mut revoked) = (StdRng::seed_from_u64(seed), 0);
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(millis(rng.random_range(20..200))).await;
        let Ok(inspection) = client.inspect("k").await else {
            continue;
        };
        for holder in &inspection.holders {
            match client.revoke(holder, Revocation::Graceful).await {
                Ok(leasehold_core::RevokeOutcome::FreeWithin(_)) => revoked += 1,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                Err(error) => assert!(error.is_retryable(), "a revocation failed: {error}"),
            }
        }
    }
    revoked
}

/// Injects faults into the servers and the workers, and revokes locks, for the whole time. Returns
/// the number of revocations.
fn under_faults(
    target: &mut impl Target,
    crew: &mut Crew<'_>,
    administrator: &LockClient,
    runtime: &Runtime,
    seed: u64,
) -> usize {
    let ttl_ms = target.ttl_ms();
    // The end of the faults, and that of the revocations.
    let (peace, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let begun = Instant::now();
    thread::scope(|scope| {
        let revoking = scope.spawn(|| runtime.block_on(revoke(administrator, seed, &over)));
        let at_war = || !peace.load(Ordering::Relaxed);
        let striking = scope.spawn(move || {
            let mut rng = StdRng::seed_from_u64(seed ^ 1);
            while at_war() {
                target.strike(&mut rng);
            }
            target.settle();
        });
        let mut rng = StdRng::seed_from_u64(seed ^ 2);
        while begun.elapsed() < chaos_duration()
            || (crew.grants() < ENOUGH && begun.elapsed() < GRANTS_WITHIN)
        {
            crew.strike(&mut rng, ttl_ms);
        }
        peace.store(true, Ordering::Relaxed);
        striking
            .join()
            .expect("the thread that injects faults panicked");
        over.store(true, Ordering::Relaxed);
        revoking
            .join()
            .expect("the administrator's thread panicked")
    })
}

/// Injects faults for the whole time, then verifies all guarantees.
fn survives(mut target: impl Target) {
    let seed = seed();
    let ttl_ms = target.ttl_ms();
    let stage = Stage::on(&target.url(0), ttl_ms);
    let urls = (0..PROCESSES).map(|worker| target.url(worker)).collect();
    let mut crew = Crew::new(&stage, urls, storm());
    let runtime = runtime();
    let administrator = runtime.block_on(client_of(&target.url(0), ttl_ms));
    let revoked = under_faults(&mut target, &mut crew, &administrator, &runtime, seed);
    at_peace(&stage, &crew);
    let (grants, errors) = crew.end();
    println!("{grants} grants by surviving workers, {revoked} revocations, errors: {errors:?}");
    assert!(
        crew.grants() >= ENOUGH,
        "only {grants} grants: nothing was tested"
    );
    only_faults(&errors);

    let events = crew.events();
    none(&checker::overlaps(&events), "mutual exclusion");
    none(&checker::tokens(&events, Order::AsReported), "token order");
    none(
        &checker::register(&stage.register().history().unwrap()),
        "fenced writes",
    );
    grants_a_larger_token(&stage, &crew.urls[0], storm(), &events);
}

/// Asserts that after all faults another worker is granted the lock, with a larger token.
fn grants_a_larger_token(stage: &Stage, url: &str, storm: Storm, events: &[Event]) {
    let Storm { key, election, .. } = storm;
    let mut worker = stage.worker_at("after", url);
    let (slot, wanted) = (0, key.clone());
    let command = if election {
        let value = "after".into();
        Command::Campaign { slot, key, value }
    } else {
        let patience = Patience::Forever;
        Command::Lock {
            slot,
            key,
            patience,
        }
    };
    let ticket = worker.send(command).unwrap();
    let answer = worker.answer(ticket, LONE_WAITER).unwrap_or_else(|error| {
        let seen = runtime().block_on(async {
            let client = client_of(url, 10_000).await;
            client.inspect(wanted.as_str()).await
        });
        panic!("nothing was granted after all faults: {error}; the server shows {seen:?}");
    });
    let (token, _) = granted(answer);
    let largest = events.iter().filter_map(|event| event.token).max();
    assert!(Some(token) > largest, "{token} after {largest:?}");
}

/// Asserts that without faults, but still in the storm, a writer and a reader in other processes
/// are granted within a bounded number of hand-offs.
fn at_peace(stage: &Stage, crew: &Crew<'_>) {
    for shared in [false, true] {
        let name = if shared { "reader" } else { "writer" };
        let mut worker = stage.worker_at(name, &crew.urls[0]);
        let begun = now_ns();
        let (slot, key, patience) = (0, "k".into(), Patience::Forever);
        let command = if shared {
            Command::Read {
                slot,
                key,
                patience,
            }
        } else {
            Command::Lock {
                slot,
                key,
                patience,
            }
        };
        let ticket = worker.send(command).unwrap();
        let answer = worker.answer(ticket, LONE_WAITER).unwrap_or_else(|error| {
            let passed = grants_between(&crew.events(), |_| true, begun, now_ns());
            panic!("a {name} was not granted during {passed} other grants: {error}")
        });
        assert!(
            matches!(answer, Answer::Granted { .. }),
            "a {name}: {answer:?}"
        );
        let passed = grants_between(&crew.events(), |_| true, begun, now_ns());
        assert!(
            passed <= HAND_OFFS,
            "a {name} was passed over {passed} times"
        );
        assert!(matches!(
            worker.ask(Command::Release { slot: 0 }).unwrap(),
            Answer::Released(_)
        ));
    }
}

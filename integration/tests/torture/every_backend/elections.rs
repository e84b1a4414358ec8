//! Elections in chaos: the candidates are the workers, and observers see who leads. The vacancies
//! after kills are printed.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use leasehold_core::{FencingToken, Leader, LockClient};
use leasehold_integration::{
    checker::{self, Order},
    chosen::{chaos_duration, seed},
    stage::Stage,
    steps::{client_of, millis, until},
    worker::{Event, EventLog, Op, Phase, Storm, client, now_ns, storm as in_storm},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{sleep, timeout};

use super::{
    Crew, ENOUGH, GRANTS_WITHIN, PROCESSES, Target, grants_a_larger_token, runtime, under_faults,
};
use crate::{
    chaos::{none, only_faults},
    local_replica::LocalReplica,
};

/// The interval at which the leader is read.
const READ_EVERY: Duration = Duration::from_millis(10);
/// The time after which an observer that was not notified looks whether the test is over.
const LOOK_UP: Duration = Duration::from_millis(100);
/// The TTL in memory, and the number of candidates.
const MEMORY_TTL: u64 = 300;
const CANDIDATES: usize = 8;

/// Returns the work of each candidate. A term lasts a moment, or longer than a TTL.
fn campaigns() -> Storm {
    Storm {
        tasks: 1,
        readers: 0,
        long_in: 5,
        write: false,
        hold_us: 20_000,
        election: true,
        ..super::storm()
    }
}

/// A read of the leader: the time before it, and the answer.
struct Read {
    asked_ns: u64,
    leader: Leader,
}

/// The observations of the observers.
#[derive(Default)]
struct Seen {
    reads: Vec<Read>,
    /// The answers of each observer.
    observed: Vec<Vec<Leader>>,
}

/// Reads the leader until the test is over.
async fn read(client: &LockClient, over: &AtomicBool) -> Vec<Read> {
    let (election, mut reads) = (client.election("k"), Vec::new());
    while !over.load(Ordering::Relaxed) {
        let asked_ns = now_ns();
        match election.leader().await {
            Ok(Some(leader)) => reads.push(Read { asked_ns, leader }),
            Ok(None) => {}
            Err(error) => assert!(error.is_retryable(), "a read of the leader failed: {error}"),
        }
        sleep(READ_EVERY).await;
    }
    reads
}

/// Observes the leaders until the test is over.
async fn observe(client: &LockClient, over: &AtomicBool) -> Vec<Leader> {
    let (mut leaders, mut observed) = (client.election("k").observe(), Vec::new());
    while !over.load(Ordering::Relaxed) {
        if let Ok(next) = timeout(LOOK_UP, leaders.next()).await {
            observed.extend(next.expect("an observer failed"));
        }
    }
    observed
}

/// Observes through two clients, and reads through both, until the test is over.
async fn see(clients: &[LockClient; 2], over: &AtomicBool) -> Seen {
    let [one, other] = clients;
    let (first, second, mut reads, more) = tokio::join!(
        observe(one, over),
        observe(other, over),
        read(one, over),
        read(other, over)
    );
    reads.extend(more);
    Seen {
        reads,
        observed: vec![first, second],
    }
}

/// Compares what the observers have seen with what the candidates have logged.
fn judge(events: &[Event], seen: &Seen) {
    none(&checker::overlaps(events), "one leader at a time");
    none(&checker::tokens(events, Order::AsReported), "token order");

    let granted = |event: &&Event| (event.op, event.phase) == (Op::Acquire, Phase::Ok);
    let candidates: BTreeMap<_, _> = (events.iter().filter(granted))
        .map(|event| (event.token.unwrap(), event.proc.as_str()))
        .collect();
    // A term that was lost before its release may be shown until the lease expires on the server.
    let resigned: BTreeMap<_, _> = (events.iter())
        .filter(|event| (event.op, event.phase) == (Op::Release, Phase::Ok))
        .map(|event| (event.token.unwrap(), event.t_ns))
        .collect();
    let token = |leader: &Leader| leader.token.map(FencingToken::get).unwrap();
    for observed in &seen.observed {
        for pair in observed.windows(2) {
            let [earlier, later] =
                [&pair[0], &pair[1]].map(|leader| (token(leader), leader.version));
            assert!(earlier <= later, "{:?} after {:?}", pair[1], pair[0]);
        }
        assert!(!observed.is_empty(), "an observer has seen no leader");
    }
    // The largest token that was granted until each time.
    let mut largest = BTreeMap::from([(0, 0)]);
    for event in events.iter().filter(granted) {
        let known = *largest.last_entry().unwrap().get();
        largest.insert(event.t_ns, known.max(event.token.unwrap()));
    }
    for Read { asked_ns, leader } in &seen.reads {
        let token = token(leader);
        let (_, known) = largest.range(..asked_ns).next_back().unwrap();
        assert!(
            token >= *known,
            "{leader:?} was shown after {known} was granted"
        );
        let ended = resigned.get(&token).filter(|ended| *ended < asked_ns);
        assert_eq!(ended, None, "{leader:?} was shown after its end");
    }
    let leaders = seen.observed.iter().flatten();
    for leader in leaders.chain(seen.reads.iter().map(|read| &read.leader)) {
        // A candidate that is killed may have had no time to log its grant.
        if let Some(candidate) = candidates.get(&token(leader)) {
            let value = String::from_utf8_lossy(&leader.value);
            assert_eq!(value, *candidate, "the value of another: {leader:?}");
        }
    }
    let vacancies = vacancies(events);
    let observed: Vec<_> = seen.observed.iter().map(Vec::len).collect();
    println!(
        "{} terms, {} reads, {observed:?} leaders observed, {} leaders killed, longest vacancy {:?}",
        candidates.len(),
        seen.reads.len(),
        vacancies.len(),
        vacancies.iter().max()
    );
}

/// Returns the times from the kill of each leader to the next grant.
fn vacancies(events: &[Event]) -> Vec<Duration> {
    let mut found = Vec::new();
    let (mut leader, mut vacant_since): (Option<&Event>, _) = (None, None);
    for event in events {
        match (event.op, event.phase) {
            (Op::Acquire, Phase::Ok) => {
                let since: Option<u64> = vacant_since.take();
                found.extend(since.map(|since| Duration::from_nanos(event.t_ns - since)));
                leader = Some(event);
            }
            (Op::Release, Phase::Invoke) | (Op::Check, Phase::Fail) => {
                leader = leader.filter(|leader| leader.attempt != event.attempt);
            }
            (Op::Kill, Phase::Invoke) if leader.is_some_and(|leader| leader.proc == event.proc) => {
                vacant_since = Some(event.t_ns);
                leader = None;
            }
            _ => {}
        }
    }
    found
}

/// Injects faults for the whole time, then verifies what the candidates and the observers saw.
pub(super) fn elects(mut target: impl Target) {
    let seed = seed();
    let ttl_ms = target.ttl_ms();
    let stage = Stage::on(&target.url(0), ttl_ms);
    let urls = (0..PROCESSES).map(|worker| target.url(worker)).collect();
    let mut crew = Crew::new(&stage, urls, campaigns());
    let (revoking, observing) = (runtime(), runtime());
    let administrator = revoking.block_on(client_of(&target.url(0), ttl_ms));
    let observers = [0, 1].map(|way| observing.block_on(client_of(&target.url(way), ttl_ms)));
    let over = AtomicBool::new(false);
    let (revoked, seen) = thread::scope(|scope| {
        let seeing = scope.spawn(|| observing.block_on(see(&observers, &over)));
        let revoked = under_faults(&mut target, &mut crew, &administrator, &revoking, seed);
        // A busy machine may have had few terms during the faults.
        until("enough terms", GRANTS_WITHIN, || crew.grants() >= ENOUGH);
        over.store(true, Ordering::Relaxed);
        (revoked, seeing.join().expect("an observer panicked"))
    });
    let (terms, errors) = crew.end();
    println!("{terms} terms of surviving workers, {revoked} revocations, errors: {errors:?}");
    only_faults(&errors);
    let events = crew.events();
    judge(&events, &seen);
    grants_a_larger_token(&stage, &crew.urls[0], campaigns(), &events);
}

/// The candidates are threads, which are paused and killed.
#[test]
fn memory_elects_one_leader_at_a_time_in_chaos() {
    const URL: &str = "memory:elections";
    let mut rng = StdRng::seed_from_u64(seed());
    let stage = Stage::on(URL, MEMORY_TTL);
    let mut names = Vec::new();
    let mut hire = || {
        let name = format!("p{}", names.len());
        let (proc, register) = (name.clone(), stage.register());
        let candidate = LocalReplica::start(&name, &stage.log(&name), move |log| {
            Box::pin(async move {
                let ttl = leasehold_core::Ttl::from_millis(MEMORY_TTL).unwrap();
                let client = client(URL, ttl, &proc).await.unwrap();
                in_storm(&client, &log, &register, &proc, &campaigns()).await
            })
        });
        names.push(stage.log(&name));
        (candidate, names.clone())
    };
    let mut candidates: Vec<_> = (0..CANDIDATES).map(|_| hire().0).collect();
    let observing = runtime();
    let observers = [0, 1].map(|_| observing.block_on(client_of(URL, MEMORY_TTL)));
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let (events, seen) = thread::scope(|scope| {
        let seeing = scope.spawn(|| observing.block_on(see(&observers, &over)));
        let mut logs = Vec::new();
        let grants = |logs: &[_]| {
            checker::grants_between(&EventLog::merge(logs).unwrap(), |_| true, 0, u64::MAX)
        };
        while begun.elapsed() < chaos_duration()
            || (grants(&logs) < ENOUGH && begun.elapsed() < GRANTS_WITHIN)
        {
            thread::sleep(millis(rng.random_range(20..300)));
            let at = rng.random_range(0..CANDIDATES);
            if rng.random() {
                candidates[at].kill();
                (candidates[at], logs) = hire();
            } else {
                let paused = |other: &usize| *other != at;
                (0..CANDIDATES)
                    .filter(paused)
                    .for_each(|other| candidates[other].pause());
                thread::sleep(millis(
                    rng.random_range(MEMORY_TTL / 10..MEMORY_TTL * 3 / 2),
                ));
                (0..CANDIDATES)
                    .filter(paused)
                    .for_each(|other| candidates[other].resume());
            }
        }
        over.store(true, Ordering::Relaxed);
        let seen = seeing.join().expect("an observer panicked");
        candidates.iter_mut().for_each(LocalReplica::kill);
        (EventLog::merge(&logs).unwrap(), seen)
    });
    judge(&events, &seen);
}

//! Work that runs once per occurrence, on every backend: eight replicas with clocks up to an hour
//! apart, of which some are killed and others paused.
//!
//! Each replica is a process, and in memory a thread. It runs two names: one whose missed
//! occurrences are made up for, and one that skips them, which is the default. A run has
//! [`OCCURRENCES`] occurrences, or as many as `LEASEHOLD_OCCURRENCES` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, thread,
    time::{Duration, Instant},
};

use leasehold_core::{
    FencingToken, LockClient,
    once::{Occurrence, RunInfo, RunState},
};
use leasehold_integration::{
    checker::{self, Order},
    chosen::seed,
    server::{EtcdCluster, Persistence, PostgresServer, RedisServer, ZookeeperServer},
    stage::Stage,
    steps::{client_of, millis},
    worker::{Command, Event, EventLog, Op, Phase, Replica, Ticket, Worker, unix_ms},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{chaos::none, local_replica::LocalReplica};

const OCCURRENCES: u64 = 20;
const PERIOD_MS: u64 = 250;
/// The errors of the clocks, in milliseconds. They count on a backend whose server has no clock.
/// There the fastest clock decides what is due, and the next ones take over from it.
const SKEWS_MS: [i64; 8] = [
    1_800_000, 1_800_000, 1_799_960, 1_799_700, 1_798_000, 1_740_000, 0, -1_800_000,
];
/// The name whose missed occurrences are made up for, and the one that skips them.
const NAMES: [(&str, bool); 2] = [("made-up-for", true), ("skipped", false)];
/// The timeout for another occurrence to be decided.
const STALLED: Duration = Duration::from_secs(180);

fn occurrences() -> u64 {
    env::var("LEASEHOLD_OCCURRENCES").map_or(OCCURRENCES, |text| {
        text.parse()
            .expect("LEASEHOLD_OCCURRENCES must be a number of occurrences")
    })
}

fn replica(at: usize, (key, make_up): (&str, bool)) -> Replica {
    Replica {
        key: key.to_owned(),
        period_ms: PERIOD_MS,
        make_up,
        skew_ms: SKEWS_MS[at],
    }
}

/// A replica that can be killed.
enum Host {
    Process(Worker, Vec<Ticket>),
    Thread(LocalReplica),
}

impl Host {
    fn start(stage: &Stage, at: usize, proc: &str, ttl_ms: u64) -> Self {
        let [first, second] = NAMES.map(|name| replica(at, name));
        if !stage.url().starts_with("memory:") {
            let mut worker = stage.worker(proc);
            let serving =
                [first, second].map(|replica| worker.send(Command::Serve(replica)).unwrap());
            return Self::Process(worker, serving.into());
        }
        let (url, label) = (stage.url().to_owned(), proc.to_owned());
        Self::Thread(LocalReplica::start(proc, &stage.log(proc), move |log| {
            Box::pin(async move {
                let served = tokio::try_join!(
                    first.serve(&url, ttl_ms, &label, &log),
                    second.serve(&url, ttl_ms, &label, &log),
                );
                panic!("a replica has ended: {served:?}");
            })
        }))
    }

    fn pause(&mut self) {
        match self {
            Self::Process(worker, _) => worker.pause().unwrap(),
            Self::Thread(replica) => replica.pause(),
        }
    }

    fn resume(&mut self) {
        match self {
            Self::Process(worker, _) => worker.resume().unwrap(),
            Self::Thread(replica) => replica.resume(),
        }
    }

    /// Kills the replica, which must not have ended by itself.
    fn kill(&mut self) {
        match self {
            Self::Process(worker, serving) => {
                for ticket in serving {
                    if let Ok(ended) = worker.answer(*ticket, Duration::ZERO) {
                        panic!("a replica has ended: {ended:?}");
                    }
                }
                worker.kill().unwrap();
            }
            Self::Thread(replica) => replica.kill(),
        }
    }
}

/// The replicas. Those that are killed are replaced, under another name and with the same clock.
struct Replicas<'a> {
    stage: &'a Stage,
    ttl_ms: u64,
    /// The present replicas, with their names.
    hosts: Vec<(String, Host)>,
    /// The names of all, also of those that were killed.
    names: Vec<String>,
}

impl Replicas<'_> {
    fn hire(&mut self, at: usize) -> (String, Host) {
        let name = format!("r{}", self.names.len());
        let host = Host::start(self.stage, at, &name, self.ttl_ms);
        self.names.push(name.clone());
        (name, host)
    }

    fn add(&mut self) {
        let host = self.hire(self.hosts.len());
        self.hosts.push(host);
    }

    fn events(&self) -> Vec<Event> {
        let logs: Vec<_> = self.names.iter().map(|name| self.stage.log(name)).collect();
        EventLog::merge(&logs).unwrap()
    }

    /// Returns the replica that began the last run, which probably has not ended.
    fn runner(&self) -> Option<usize> {
        let events = self.events();
        let last = events.iter().rev().find(|event| event.op == Op::Acquire)?;
        self.hosts.iter().position(|(name, _)| *name == last.proc)
    }

    /// Injects one fault and waits for its end. Returns whether a replica was killed.
    fn strike(&mut self, rng: &mut StdRng) -> bool {
        let any = rng.random_range(0..self.hosts.len());
        let at = if rng.random() {
            self.runner().unwrap_or(any)
        } else {
            any
        };
        let span = millis(rng.random_range(self.ttl_ms / 10..self.ttl_ms * 3 / 2));
        let paused: Vec<_> = match rng.random_range(0..4) {
            0 => vec![at],
            // All but one.
            1 => (0..self.hosts.len()).filter(|host| *host != at).collect(),
            _ => {
                self.hosts[at].1.kill();
                self.hosts[at] = self.hire(at);
                return true;
            }
        };
        (paused.iter()).for_each(|host| self.hosts[*host].1.pause());
        thread::sleep(span);
        (paused.iter()).for_each(|host| self.hosts[*host].1.resume());
        false
    }
}

/// The observations of the history of one name.
#[derive(Default)]
struct Seen {
    through: u64,
    /// The instant up to which everything was decided when the history was first read.
    before: Option<u64>,
    runs: BTreeMap<u64, RunInfo>,
}

impl Seen {
    /// Adds the present history, if a busy server answers in time. Nothing that was decided may
    /// change.
    async fn look(&mut self, client: &LockClient, name: (&str, bool)) {
        let once = replica(0, name).once(client).unwrap();
        let history = match once.history().await {
            Err(error) if error.is_retryable() => return,
            history => history.unwrap(),
        };
        let Some(through) = history.decided_through.map(unix_ms) else {
            return;
        };
        assert!(
            through >= self.through,
            "{}: decided through {through} after {}",
            name.0,
            self.through
        );
        self.through = through;
        self.before.get_or_insert(through);
        for run in history.runs {
            let Occurrence::At(at) = run.occurrence else {
                panic!("{run:?}")
            };
            let known = self.runs.insert(unix_ms(at), run.clone());
            if let Some(known) = known {
                let is_decided = known.state != RunState::Started;
                assert!(!is_decided || known == run, "{known:?} became {run:?}");
                assert!(known.attempt <= run.attempt, "{known:?} became {run:?}");
            }
        }
    }
}

/// The runs of one occurrence, as the work has logged them: the tokens of those that began, and of
/// those that were completed.
#[derive(Default)]
struct Runs {
    begun: Vec<Option<u64>>,
    ended: BTreeSet<Option<u64>>,
}

/// Compares the log of the work with the history.
fn judge((name, make_up): (&str, bool), events: &[Event], seen: &Seen, last: u64) {
    let mut runs: BTreeMap<u64, Runs> = BTreeMap::new();
    let mut steps = Vec::new();
    for event in events {
        if event.op == Op::Kill {
            steps.push(event.clone());
        }
        let Some((key, instant)) = event.key.split_once('@').filter(|(key, _)| *key == name) else {
            continue;
        };
        // All runs of a name exclude each other.
        steps.push(Event {
            key: key.to_owned(),
            ..event.clone()
        });
        let run = runs.entry(instant.parse().unwrap()).or_default();
        match (event.op, event.phase) {
            (Op::Acquire, Phase::Ok) => run.begun.push(event.token),
            (Op::Release, Phase::Invoke) => drop(run.ended.insert(event.token)),
            _ => {}
        }
    }
    none(&checker::overlaps(&steps), name);
    none(&checker::tokens(&steps, Order::AsReported), name);

    let first = seen.before.unwrap() + 1;
    let first = first.next_multiple_of(PERIOD_MS);
    let (mut completed, mut skipped, mut abandoned, mut crashes) = (0, 0, 0, 0);
    for instant in (first..=last).step_by(usize::try_from(PERIOD_MS).unwrap()) {
        let begun = runs.get(&instant).map_or(0, |run| run.begun.len());
        let (decided, entry) = seen.runs.range(instant..).next().expect("a later run");
        if *decided != instant || entry.state == RunState::Skipped {
            assert_eq!(entry.state, RunState::Skipped, "{name}@{instant} was lost");
            assert!(!make_up, "{name}@{instant} was skipped: {entry:?}");
            assert_eq!(begun, 0, "{name}@{instant} was skipped and ran: {entry:?}");
            skipped += 1;
            continue;
        }
        assert!(
            begun <= entry.attempt as usize,
            "{name}@{instant} began {begun} times: {entry:?}"
        );
        crashes += entry.crashes;
        match entry.state {
            RunState::Ok => {
                let token = entry.token.map(FencingToken::get);
                let run = &runs[&instant];
                assert_eq!(run.begun.last(), Some(&token), "{name}: {entry:?}");
                assert!(run.ended.contains(&token), "{name}: {entry:?}");
                completed += 1;
            }
            // A newer occurrence has superseded one that crashed.
            RunState::Abandoned if !make_up => abandoned += 1,
            _ => panic!("{name}@{instant} is not decided: {entry:?}"),
        }
    }
    let begun: usize = runs.values().map(|run| run.begun.len()).sum();
    println!(
        "{name}: {completed} completed, {skipped} skipped, {abandoned} abandoned, {begun} runs, {crashes} crashes"
    );
    assert!(completed > 0, "{name}: nothing was completed");
}

/// Serves the occurrences under faults, and compares what the work has logged with the history.
fn each_is_decided_once(url: &str, ttl_ms: u64) {
    let mut rng = StdRng::seed_from_u64(seed());
    let stage = if url == "file:" {
        Stage::on_files(ttl_ms)
    } else {
        Stage::on(url, ttl_ms)
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(client_of(stage.url(), ttl_ms));
    let mut replicas = Replicas {
        stage: &stage,
        ttl_ms,
        hosts: Vec::new(),
        names: Vec::new(),
    };
    let mut seen = [Seen::default(), Seen::default()];
    let look = |seen: &mut [Seen; 2]| {
        for (seen, name) in seen.iter_mut().zip(NAMES) {
            runtime.block_on(seen.look(&client, name));
        }
    };
    // The fastest clock comes first. Otherwise it would find an hour of missed occurrences.
    replicas.add();
    let (mut progress, mut before) = (Instant::now(), [0, 0]);
    let mut kills = 0;
    let last = loop {
        look(&mut seen);
        let through = [seen[0].through, seen[1].through];
        if through != before {
            (progress, before) = (Instant::now(), through);
        }
        assert!(progress.elapsed() < STALLED, "stalled at {through:?}");
        if let [Some(one), Some(other)] = [seen[0].before, seen[1].before] {
            let last = one.max(other) + (occurrences() + 1) * PERIOD_MS;
            let last = last - last % PERIOD_MS;
            if through.iter().all(|through| *through >= last) {
                break last;
            }
            if replicas.hosts.len() < SKEWS_MS.len() {
                replicas.add();
                continue;
            }
            kills += u32::from(replicas.strike(&mut rng));
        }
        thread::sleep(millis(rng.random_range(20..400)));
    };
    (replicas.hosts.iter_mut()).for_each(|(_, host)| host.kill());
    look(&mut seen);
    let events = replicas.events();
    println!("{} occurrences, {kills} kills", occurrences());
    for (name, seen) in NAMES.into_iter().zip(&seen) {
        judge(name, &events, seen, last);
    }
}

#[test]
fn memory_decides_each_occurrence_once() {
    each_is_decided_once("memory:once", 500);
}

#[test]
fn files_decide_each_occurrence_once() {
    each_is_decided_once("file:", 500);
}

#[test]
fn redis_decides_each_occurrence_once() {
    let builder = RedisServer::builder().persistence(Persistence::EveryWrite);
    let server = builder.start().unwrap();
    each_is_decided_once(&server.url(), 500);
}

#[test]
fn etcd_decides_each_occurrence_once() {
    let cluster = EtcdCluster::start().unwrap();
    each_is_decided_once(&cluster.url(), 2000);
}

#[test]
fn zookeeper_decides_each_occurrence_once() {
    let server = ZookeeperServer::start().unwrap();
    let url = format!("{}/?tick=500ms", server.url());
    each_is_decided_once(&url, 2000);
}

#[test]
fn postgres_decides_each_occurrence_once() {
    let server = PostgresServer::start().unwrap();
    each_is_decided_once(&server.url(), 2000);
}

/// A control: the judge accepts one replica, and objects to two without a common record.
#[test]
fn without_a_common_record_the_judge_objects() {
    let stage = Stage::on("memory:control", 500);
    let key = "control";
    let hosts: Vec<_> = ["one", "other"]
        .into_iter()
        .map(|proc| {
            let (url, replica) = (format!("memory:control-{proc}"), replica(0, (key, true)));
            LocalReplica::start(proc, &stage.log(proc), move |log| {
                Box::pin(async move {
                    let served = replica.serve(&url, 500, proc, &log).await;
                    panic!("a replica has ended: {served:?}");
                })
            })
        })
        .collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(client_of("memory:control-one", 500));
    let mut seen = Seen::default();
    let last = loop {
        runtime.block_on(seen.look(&client, (key, true)));
        let events = EventLog::merge(&["one", "other"].map(|proc| stage.log(proc))).unwrap();
        let begun = |proc| {
            (events.iter())
                .filter(|event| event.proc == proc && event.op == Op::Acquire)
                .count()
        };
        let last = seen.through - seen.through % PERIOD_MS;
        let judged = seen.before.map_or(0, |before| last.saturating_sub(before));
        if begun("one") > 3 && begun("other") > 3 && judged > 2 * PERIOD_MS {
            break last;
        }
        thread::sleep(millis(10));
    };
    drop(hosts);
    let events = EventLog::merge(&["one", "other"].map(|proc| stage.log(proc))).unwrap();
    let of_one: Vec<_> = (events.iter().filter(|event| event.proc == "one"))
        .cloned()
        .collect();
    judge((key, true), &of_one, &seen, last);
    let judged = std::panic::catch_unwind(|| judge((key, true), &events, &seen, last));
    assert!(
        judged.is_err(),
        "two runs of each occurrence are no violation"
    );
}

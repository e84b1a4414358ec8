use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use leasehold_integration::{
    checker::{self, Order, Violation},
    chosen::seed,
    server::{Persistence, RedisServer},
    stage::{Stage, granted},
    steps::{SOON, millis},
    worker::{Answer, Command, EventLog, Patience, Storm, Ticket, Worker},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::nothing_left;

/// Short, so that many pauses last longer.
const TTL: u64 = 500;
pub(crate) const PROCESSES: usize = 4;
const TASKS: u32 = 16;

/// The timeout for a storm to end. Pending acquisitions end at their own timeouts.
const CALM: Duration = Duration::from_secs(120);
/// The number of grants without which a storm has tested nothing. It lasts longer on a slow
/// machine.
const ENOUGH: usize = 100;
/// The timeout for this number of grants.
const GRANTS_WITHIN: Duration = Duration::from_secs(300);

/// The lock is held most of the time, so that a paused process probably holds it.
fn storm() -> Command {
    Command::Storm(Storm {
        tasks: TASKS,
        key: "k".into(),
        within_ms: 2000,
        hold_us: 3000,
        write: true,
        ..Storm::default()
    })
}

/// Worker processes in a storm. Some are killed and replaced under another name.
pub(crate) struct Crew<'a> {
    stage: &'a Stage,
    pub(crate) workers: Vec<Worker>,
    names: Vec<String>,
}

impl<'a> Crew<'a> {
    pub(crate) fn new(stage: &'a Stage) -> Self {
        let mut crew = Self {
            stage,
            workers: Vec::new(),
            names: Vec::new(),
        };
        for _ in 0..PROCESSES {
            let worker = crew.hire();
            crew.workers.push(worker);
        }
        crew
    }

    fn hire(&mut self) -> Worker {
        let name = format!("p{}", self.names.len());
        let mut worker = self.stage.worker(&name);
        self.names.push(name);
        assert!(matches!(worker.ask(storm()).unwrap(), Answer::Storming));
        worker
    }

    pub(crate) fn replace(&mut self, at: usize) {
        self.workers[at].kill().unwrap();
        self.workers[at] = self.hire();
    }

    /// Returns whether the storm has had enough grants.
    ///
    /// # Panics
    /// There are not enough although much time has passed since `begun`.
    pub(crate) fn had_enough(&self, begun: Instant) -> bool {
        let grants = checker::grants_between(&self.events(), |_| true, 0, u64::MAX);
        let late = begun.elapsed() > GRANTS_WITHIN;
        assert!(grants >= ENOUGH || !late, "only {grants} grants");
        grants >= ENOUGH
    }

    /// Ends the storm. Returns the number of grants, and the errors by kind.
    pub(crate) fn calm(&mut self) -> (u64, BTreeMap<String, u64>) {
        let tickets: Vec<Ticket> = self
            .workers
            .iter_mut()
            .map(|worker| worker.send(Command::Calm).unwrap())
            .collect();
        let (mut total, mut by_kind) = (0, BTreeMap::new());
        for (worker, ticket) in self.workers.iter_mut().zip(tickets) {
            match worker.answer(ticket, CALM).expect("the storm hangs") {
                Answer::Storm {
                    granted, errors, ..
                } => {
                    total += granted;
                    for (kind, count) in errors {
                        *by_kind.entry(kind).or_default() += count;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        (total, by_kind)
    }

    pub(crate) fn events(&self) -> Vec<leasehold_integration::worker::Event> {
        let logs: Vec<_> = self.names.iter().map(|name| self.stage.log(name)).collect();
        EventLog::merge(&logs).unwrap()
    }
}

#[track_caller]
pub(crate) fn none(violations: &[Violation], what: &str) {
    let shown: Vec<_> = violations.iter().take(5).map(ToString::to_string).collect();
    assert!(
        violations.is_empty(),
        "{what}: {} violations, such as {shown:#?}",
        violations.len()
    );
}

/// Asserts that all errors are faults that a program can handle.
#[track_caller]
pub(crate) fn only_faults(errors: &BTreeMap<String, u64>) {
    let known = ["Unavailable", "Indeterminate", "Lost"];
    assert!(
        errors.keys().all(|kind| known.contains(&kind.as_str())),
        "{errors:?}"
    );
}

/// Asserts that after all faults the lock is granted again, with a larger token.
pub(crate) fn heals(stage: &Stage, crew: &Crew<'_>) {
    let mut worker = stage.worker("after");
    let asked = worker.send(Command::Lock {
        slot: 0,
        key: "k".into(),
        patience: Patience::Forever,
    });
    let (token, _) = granted(worker.answer(asked.unwrap(), SOON).unwrap());
    let largest = crew
        .events()
        .iter()
        .filter_map(|event| event.token)
        .max()
        .unwrap();
    assert!(token > largest, "{token} after {largest}");
}

/// Injects random faults into the server and the workers for `span`, and until there were enough
/// grants.
fn strike(rng: &mut StdRng, server: &mut RedisServer, crew: &mut Crew<'_>, span: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < span || !crew.had_enough(begun) {
        thread::sleep(millis(rng.random_range(50..400)));
        let at = rng.random_range(0..PROCESSES);
        match rng.random_range(0..5) {
            0 => {
                server.pause().unwrap();
                thread::sleep(millis(rng.random_range(10..TTL + 500)));
                server.resume().unwrap();
            }
            1 => {
                server.kill();
                thread::sleep(millis(rng.random_range(0..500)));
                server.restart().unwrap();
            }
            2 | 3 => {
                // All but one: the holder is probably paused, and the remaining one acquires its
                // lock.
                let stopped: Vec<_> = (0..PROCESSES).filter(|worker| *worker != at).collect();
                stopped
                    .iter()
                    .for_each(|worker| crew.workers[*worker].pause().unwrap());
                thread::sleep(millis(rng.random_range(TTL / 10..2 * TTL)));
                stopped
                    .iter()
                    .for_each(|worker| crew.workers[*worker].resume().unwrap());
            }
            _ => crew.replace(at),
        }
    }
}

#[test]
fn redis_keeps_its_promises_with_64_tasks_of_4_processes() {
    let mut rng = StdRng::seed_from_u64(seed());
    let mut server = RedisServer::builder()
        .persistence(Persistence::EveryWrite)
        .start()
        .unwrap();
    let stage = Stage::on(&server.url(), TTL);
    let mut crew = Crew::new(&stage);
    strike(&mut rng, &mut server, &mut crew, Duration::from_secs(15));
    let (grants, errors) = crew.calm();
    println!("{grants} grants by surviving workers, errors: {errors:?}");
    only_faults(&errors);

    let events = crew.events();
    none(&checker::overlaps(&events), "mutual exclusion");
    none(&checker::tokens(&events, Order::AsReported), "token order");
    none(
        &checker::register(&stage.register().history().unwrap()),
        "fenced writes",
    );
    heals(&stage, &crew);
    drop(crew);
    nothing_left(&server, SOON);
}

#[test]
fn tokens_protect_the_register_when_the_server_loses_data() {
    let mut rng = StdRng::seed_from_u64(seed());
    let mut server = RedisServer::start().unwrap();
    let stage = Stage::on(&server.url(), TTL);
    let mut crew = Crew::new(&stage);
    strike(&mut rng, &mut server, &mut crew, Duration::from_secs(8));
    let (grants, errors) = crew.calm();
    println!("{grants} grants by surviving workers, errors: {errors:?}");
    only_faults(&errors);

    // A server that loses its data frees the locks immediately, so two processes may hold one lock.
    // The tokens still increase and protect the register.
    none(
        &checker::tokens(&crew.events(), Order::RealTime),
        "token order",
    );
    none(
        &checker::register(&stage.register().history().unwrap()),
        "fenced writes",
    );
    heals(&stage, &crew);
}

#[test]
fn files_keep_their_promises_with_64_tasks_of_4_processes() {
    let mut rng = StdRng::seed_from_u64(seed());
    let stage = Stage::on_files(TTL);
    let mut crew = Crew::new(&stage);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) || !crew.had_enough(begun) {
        thread::sleep(millis(rng.random_range(50..300)));
        let at = rng.random_range(0..PROCESSES);
        if rng.random_bool(0.5) {
            crew.workers[at].pause().unwrap();
            thread::sleep(millis(rng.random_range(10..TTL)));
            crew.workers[at].resume().unwrap();
        } else {
            crew.replace(at);
        }
    }
    let (grants, errors) = crew.calm();
    println!("{grants} grants by surviving workers, errors: {errors:?}");
    only_faults(&errors);
    let events = crew.events();
    none(&checker::overlaps(&events), "mutual exclusion");
    none(&checker::tokens(&events, Order::AsReported), "token order");
    none(
        &checker::register(&stage.register().history().unwrap()),
        "fenced writes",
    );
    heals(&stage, &crew);
}

/// A control: the same programs, without mutual exclusion.
#[test]
fn without_a_common_lock_the_checker_finds_violations() {
    let stage = Stage::on_files(TTL);
    let elsewhere = Stage::on_files(TTL);
    let (mut one, mut other) = (
        stage.worker("one"),
        stage.worker_at("other", elsewhere.url()),
    );
    for worker in [&mut one, &mut other] {
        assert!(matches!(worker.ask(storm()).unwrap(), Answer::Storming));
    }
    thread::sleep(millis(500));
    for worker in [&mut one, &mut other] {
        let calm = worker.send(Command::Calm).unwrap();
        worker.answer(calm, SOON).unwrap();
    }
    let events = EventLog::merge(&[stage.log("one"), stage.log("other")]).unwrap();
    assert!(!checker::overlaps(&events).is_empty());
}

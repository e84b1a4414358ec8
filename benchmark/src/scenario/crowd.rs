//! `crowd`: a thousand waiters in one process.
//!
//! Measures the number of requests per hand-off with a thousand waiters and with ten, and the wait
//! of a process with one waiter beside them, in hand-offs between the thousand.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_integration::{
    HarnessError, Result,
    peer::{Peer, tell},
};
use tokio::{
    sync::{Notify, mpsc::UnboundedReceiver},
    task::JoinSet,
    time,
};

use super::Scenario;
use crate::{
    arguments::WorkerArguments,
    backend::Backend,
    figures::{Latencies, median},
    plan::Plan,
    process,
    progress::Progress,
    row::{Figure, Row},
    runtime::RuntimeKind,
    subject::{Lock, Locks, Source, Subject},
    worker,
};

const CROWDS: [usize; 2] = [10, 1_000];
const TIMEOUT: Duration = Duration::from_secs(120);
/// The time for all tasks to start waiting.
const ASSEMBLY: Duration = Duration::from_millis(300);
/// The maximum pause of the lone process between two acquisitions.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn run(plan: &Plan, backend: &dyn Backend, progress: &Progress) -> Result<Vec<Row>> {
    let name = backend.name().name();
    let Some(location) = backend.location() else {
        progress.skip(format_args!("crowd of {name}: it lives in one process"));
        return Ok(Vec::new());
    };
    let subjects = plan.subjects(backend, Scenario::Crowd);
    let runtime = plan
        .runtimes
        .first()
        .copied()
        .unwrap_or(RuntimeKind::CurrentThread);
    let mut rows = Vec::new();
    for subject in &subjects {
        let spawn = |waiters| {
            worker::spawn(&WorkerArguments {
                role: Scenario::Crowd,
                on: backend.name(),
                at: location.clone(),
                subject: subject.name().to_owned(),
                runtime,
                count: waiters,
                seconds: 0,
            })
        };
        for waiters in CROWDS {
            progress.step(format_args!(
                "{name}: {} with {waiters} waiters",
                subject.name()
            ));
            let mut row = commands(plan, backend, &**subject, runtime, waiters, spawn(waiters)?)?;
            let lone = lone(spawn(waiters)?, spawn(1)?, plan.lone_turns)?;
            row.handoffs_waited_p50 = median(lone.handoffs.iter().copied());
            row.handoffs_waited_max = lone.handoffs.iter().copied().reduce(f64::max);
            rows.push(row.with_latencies(&lone.waits));
        }
    }
    Ok(rows)
}

/// Returns the number of requests per hand-off within the crowd, and hand-offs per second.
fn commands(
    plan: &Plan,
    backend: &dyn Backend,
    subject: &dyn Subject,
    runtime: RuntimeKind,
    waiters: usize,
    mut crowd: Peer,
) -> Result<Row> {
    crowd.say("assemble")?;
    numbers(&crowd.hear(TIMEOUT)?)?;
    let before = backend.commands()?;
    crowd.say(&format!("run {}", plan.crowd_handoffs))?;
    let done = numbers(&crowd.hear(TIMEOUT)?)?;
    let after = backend.commands()?;
    let &[handoffs, nanos] = &*done else {
        return Err(HarnessError::new("incomplete line from a worker"));
    };
    let commands = match (before, after) {
        (Some(before), Some(after)) => Some((after - before) as f64 / handoffs as f64),
        _ => None,
    };
    let figure = Figure::Costs(commands.into_iter().collect());
    let row = Row::new(
        backend.name().name(),
        Scenario::Crowd,
        waiters,
        subject,
        runtime,
        figure,
    );
    Ok(Row {
        commands_per_handoff: commands,
        per_second: Some(handoffs as f64 / nanos as f64 * 1e9),
        ..row
    })
}

/// The observations of the lone process, one per acquisition.
struct Lone {
    handoffs: Vec<f64>,
    waits: Latencies,
}

fn lone(mut crowd: Peer, mut one: Peer, turns: usize) -> Result<Lone> {
    crowd.say("assemble")?;
    crowd.hear(TIMEOUT)?;
    crowd.say("go on")?;
    one.say(&format!("turns {turns}"))?;
    let turns = numbers(&one.hear(TIMEOUT)?)?;
    crowd.say("stop")?;
    let mut granted = numbers(&crowd.hear(TIMEOUT)?)?;
    granted.sort_unstable();
    let at = |stamp: u64| granted.partition_point(|granted| *granted < stamp);
    let (mut handoffs, mut waits) = (Vec::new(), Latencies::new());
    for turn in turns.chunks_exact(2) {
        let (began, held) = (turn[0], turn[1]);
        handoffs.push((at(held) - at(began)) as f64);
        waits.extend(&[held - began]);
    }
    Ok(Lone { handoffs, waits })
}

fn numbers(line: &str) -> Result<Vec<u64>> {
    let numbers: Result<_, _> = line.split_whitespace().map(str::parse).collect();
    numbers.map_err(|error| HarnessError::caused_by("a worker did not send numbers", error))
}

/// Runs the worker: a crowd, or the lone process beside it.
pub(crate) async fn take_part<S: Source>(
    source: &S,
    waiters: usize,
    mut orders: UnboundedReceiver<String>,
) -> Result<()> {
    let locks = source.open().await?;
    let mut lock = locks.lock("crowd");
    let crowd = Arc::new(Crowd::default());
    let mut tasks = JoinSet::new();
    let mut gate = None;
    while let Some(order) = orders.recv().await {
        match order.split_once(' ').unwrap_or((&order, "")) {
            // All tasks wait for the lock that this task holds.
            ("assemble", _) => {
                let held = lock.acquire().await?;
                for _ in 0..waiters {
                    tasks.spawn(Arc::clone(&crowd).wait_again_and_again(locks.lock("crowd")));
                }
                time::sleep(ASSEMBLY).await;
                gate = Some(held);
                tell(waiters);
            }
            ("run", handoffs) => {
                let handoffs = handoffs
                    .parse()
                    .map_err(|error| HarnessError::caused_by("invalid command", error))?;
                let begun = process::now();
                open(&mut lock, &mut gate).await?;
                while crowd.len() < handoffs {
                    crowd.granted.notified().await;
                }
                crowd.disperse(&mut tasks).await?;
                tell(format_args!("{} {}", crowd.len(), process::now() - begun));
            }
            ("go", _) => open(&mut lock, &mut gate).await?,
            ("stop", _) => {
                crowd.disperse(&mut tasks).await?;
                let stamps: Vec<_> = crowd.lock().iter().map(ToString::to_string).collect();
                tell(stamps.join(" "));
            }
            ("turns", turns) => {
                let turns: usize = turns
                    .parse()
                    .map_err(|error| HarnessError::caused_by("invalid command", error))?;
                let mut stamps = Vec::new();
                for _ in 0..turns {
                    let began = process::now();
                    let held = lock.acquire().await?;
                    stamps.push(format!("{began} {}", process::now()));
                    lock.release(held).await?;
                    time::sleep(PAUSE.mul_f64(rand::random())).await;
                }
                tell(stamps.join(" "));
            }
            _ => return Err(HarnessError::new(format!("unknown command: {order:?}"))),
        }
    }
    Ok(())
}

async fn open<L: Lock>(lock: &mut L, gate: &mut Option<L::Held>) -> Result<()> {
    match gate.take() {
        Some(held) => lock.release(held).await,
        None => Err(HarnessError::new("the crowd was not assembled")),
    }
}

/// The waiters, and the times of all grants.
#[derive(Default)]
struct Crowd {
    grants: Mutex<Vec<u64>>,
    granted: Notify,
    over: AtomicBool,
}

impl Crowd {
    async fn wait_again_and_again<L: Lock>(self: Arc<Self>, mut lock: L) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            let held = lock.acquire().await?;
            self.lock().push(process::now());
            self.granted.notify_one();
            lock.release(held).await?;
        }
        Ok(())
    }

    /// Lets every task acquire the lock once more and end.
    async fn disperse(&self, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| HarnessError::caused_by("a task failed", error))??;
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

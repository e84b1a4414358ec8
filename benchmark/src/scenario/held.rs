//! `held`: the cost of idle leases.
//!
//! Each subject holds leases in a process of its own, all at the same time.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use leasehold_integration::{
    HarnessError, Result,
    peer::{Peer, tell},
};
use tokio::{
    task::{JoinSet, yield_now},
    time,
};

use super::Scenario;
use crate::{
    arguments::WorkerArguments,
    backend::Backend,
    plan::Plan,
    process,
    progress::Progress,
    row::{Figure, Row},
    runtime::RuntimeKind,
    subject::{Held, Lock, Locks, Source, Subject},
    worker,
};

/// The number of tasks that acquire and release.
const TASKS: usize = 64;
/// The renewal interval of subjects without automatic renewal, a third of the TTL.
const RENEWAL: Duration = Duration::from_secs(10);
/// The interval at which such a subject renews a part of its leases.
const STEP: Duration = Duration::from_millis(10);
/// The pause after acquiring, before processor time is measured.
const PAUSE: Duration = Duration::from_secs(1);
/// The timeout for acquiring and releasing on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The interval at which completion is checked, and the number of checks between two progress
/// reports.
const TICK: Duration = Duration::from_millis(100);
const TICKS_SHOWN: u32 = 10;

/// The cost of the leases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) cpu_percent: f64,
    pub(crate) bytes_per_lease: f64,
}

/// A subject and the process that holds its leases.
struct Holder {
    backend: &'static str,
    subject: Box<dyn Subject>,
    leases: usize,
    worker: Peer,
}

pub(super) fn run(
    plan: &Plan,
    backends: &[Box<dyn Backend>],
    progress: &Progress,
) -> Result<Vec<Row>> {
    let (leases, seconds) = plan.held;
    // Idle leases hardly depend on the runtime.
    let runtime = plan
        .runtimes
        .first()
        .copied()
        .unwrap_or(RuntimeKind::CurrentThread);
    let mut holders = Vec::new();
    for backend in backends {
        let (name, leases) = (
            backend.name().name(),
            backend
                .most_leases()
                .map_or(leases, |most| most.min(leases)),
        );
        if leases < plan.held.0 {
            let why = format_args!(
                "held of {name} with more than {leases} leases: `ulimit -Hn` allows no more"
            );
            progress.step(format_args!("not measured: {why}"));
            progress.skip(why);
        }
        for subject in plan.subjects(&**backend, Scenario::Held) {
            progress.step(format_args!(
                "{name}: {} is to hold {leases} leases for {seconds} s",
                subject.name()
            ));
            let worker = worker::spawn(&WorkerArguments {
                role: Scenario::Held,
                on: backend.name(),
                at: backend.location().unwrap_or_default(),
                subject: subject.name().to_owned(),
                runtime,
                count: leases,
                seconds,
            })?;
            holders.push(Holder {
                backend: name,
                subject,
                leases,
                worker,
            });
        }
    }
    let heard = hear_all(&mut holders, Duration::from_secs(seconds), progress)?;
    let rows = holders
        .iter()
        .zip(heard)
        .map(|(holder, (cpu_percent, bytes_per_lease))| {
            let Holder {
                backend,
                subject,
                leases,
                ..
            } = holder;
            let row = Row::new(
                backend,
                Scenario::Held,
                *leases,
                &**subject,
                runtime,
                Figure::Costs(vec![cpu_percent]),
            );
            Row {
                cpu_percent: Some(cpu_percent),
                bytes_per_lease: Some(bytes_per_lease),
                ..row
            }
        });
    Ok(rows.collect())
}

/// Waits for the results of all processes, and shows the progress every second.
fn hear_all(
    holders: &mut [Holder],
    duration: Duration,
    progress: &Progress,
) -> Result<Vec<(f64, f64)>> {
    let stages = [(); 2].map(|()| AtomicUsize::new(0));
    let [holding, done] = &stages;
    let all = holders.len();
    thread::scope(|scope| {
        let hearing: Vec<_> = holders
            .iter_mut()
            .map(|Holder { worker, .. }| {
                scope.spawn(move || {
                    let heard = figures(worker, holding, duration);
                    done.fetch_add(1, Ordering::Relaxed);
                    heard
                })
            })
            .collect();
        for tick in 1.. {
            if hearing.iter().all(ScopedJoinHandle::is_finished) {
                break;
            }
            thread::sleep(TICK);
            if tick % TICKS_SHOWN == 0 {
                let [holding, done] = [holding, done].map(|stage| stage.load(Ordering::Relaxed));
                progress.step(format_args!(
                    "held: {holding} of {all} subjects have all leases, {done} are done"
                ));
            }
        }
        let mut all = Vec::new();
        for heard in hearing {
            all.push(
                heard
                    .join()
                    .map_err(|_| HarnessError::new("a thread panicked"))??,
            );
        }
        Ok(all)
    })
}

fn figures(worker: &mut Peer, holding: &AtomicUsize, duration: Duration) -> Result<(f64, f64)> {
    worker.hear(TIMEOUT)?;
    holding.fetch_add(1, Ordering::Relaxed);
    let line = worker.hear(TIMEOUT + duration)?;
    let mut figures = line.split(' ').map(str::parse::<f64>);
    match (figures.next(), figures.next()) {
        (Some(Ok(cpu_percent)), Some(Ok(bytes_per_lease))) => Ok((cpu_percent, bytes_per_lease)),
        _ => Err(HarnessError::new(format!(
            "unexpected line from a worker: {line:?}"
        ))),
    }
}

/// Runs the worker.
pub(crate) async fn measure<S: Source>(
    source: &S,
    leases: usize,
    duration: Duration,
) -> Result<Holding> {
    let locks = source.open().await?;
    // Excludes one-time costs, which do not depend on the number of leases.
    let warm = acquire_all(&locks, "warm", TASKS).await?;
    release_all(&locks, warm).await?;
    let before = process::resident()?;
    let held = acquire_all(&locks, "held", leases).await?;
    tell("holding");
    time::sleep(PAUSE).await;
    let bytes = process::resident()?.saturating_sub(before);
    let (cpu, started) = (process::cpu_time(), Instant::now());
    if S::Locks::RENEWED_BY_HAND {
        renew_all(&locks, &held, duration).await?;
    } else {
        time::sleep(duration).await;
    }
    let cpu_percent =
        (process::cpu_time() - cpu).as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
    // Fails if a lease was lost.
    release_all(&locks, held).await?;
    locks.close().await?;
    Ok(Holding {
        cpu_percent,
        bytes_per_lease: bytes as f64 / leases as f64,
    })
}

async fn acquire_all<L: Locks>(locks: &L, name: &str, leases: usize) -> Result<Vec<Held<L>>> {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let mine: Vec<_> = (task..leases)
            .step_by(TASKS)
            .map(|n| locks.lock(&format!("{name}/{n}")))
            .collect();
        tasks.spawn(async move {
            let mut held = Vec::with_capacity(mine.len());
            for mut lock in mine {
                held.push(lock.acquire().await?);
                // File locks are acquired without ever waiting. Without yielding, the first of ten
                // thousand would not be renewed before the last is acquired.
                yield_now().await;
            }
            Ok(held)
        });
    }
    let mut all = Vec::with_capacity(leases);
    while let Some(held) = tasks.join_next().await {
        all.extend(held.map_err(|error| HarnessError::caused_by("a task failed", error))??);
    }
    Ok(all)
}

async fn release_all<L: Locks>(locks: &L, held: Vec<Held<L>>) -> Result<()> {
    let mut held = held.into_iter();
    loop {
        let mut tasks = JoinSet::new();
        for held in held.by_ref().take(TASKS) {
            let mut lock = locks.lock("any");
            tasks.spawn(async move { lock.release(held).await });
        }
        if tasks.is_empty() {
            return Ok(());
        }
        while let Some(released) = tasks.join_next().await {
            released.map_err(|error| HarnessError::caused_by("a task failed", error))??;
        }
    }
}

/// Renews all leases one after the other, evenly over `duration`.
async fn renew_all<L: Locks>(locks: &L, held: &[Held<L>], duration: Duration) -> Result<()> {
    let mut ticks = time::interval(STEP);
    let started = Instant::now();
    let mut renewed = 0;
    while started.elapsed() < duration {
        ticks.tick().await;
        let due =
            (started.elapsed().as_secs_f64() / RENEWAL.as_secs_f64() * held.len() as f64) as usize;
        for n in renewed..due {
            locks.renew(&held[n % held.len()]).await?;
        }
        renewed = due;
    }
    Ok(())
}

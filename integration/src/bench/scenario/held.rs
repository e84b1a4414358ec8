//! `held`: what leases cost that are only held.
//!
//! Each subject holds in a process of its own, all at the same time.

use std::time::{Duration, Instant};

use tokio::{task::JoinSet, time};

use super::Scenario;
use crate::{
    HarnessError, Result,
    bench::{
        arguments::WorkerArguments,
        backend::Backend,
        plan::Plan,
        process,
        progress::Progress,
        row::{Figure, Row},
        runtime::RuntimeKind,
        subject::{Held, Lock, Locks, Source},
        worker,
    },
};

/// Tasks that acquire and release.
const TASKS: usize = 64;
/// Who has to renew by hand renews everything once in this time, a third of the TTL.
const RENEWAL: Duration = Duration::from_secs(10);
/// And some of it this often.
const STEP: Duration = Duration::from_millis(10);
/// After acquiring, before the processor time counts.
const PAUSE: Duration = Duration::from_secs(1);
/// To acquire and to release on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the leases cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) cpu_percent: f64,
    pub(crate) bytes_per_lease: f64,
}

pub(super) fn run(plan: &Plan, backends: &[Box<dyn Backend>], progress: &Progress) -> Result<Vec<Row>> {
    let (leases, seconds) = plan.held;
    // What is held is quiet: the kind of runtime matters little.
    let runtime = plan.runtimes.first().copied().unwrap_or(RuntimeKind::CurrentThread);
    progress.step(format_args!("holding {leases} leases for {seconds} s"));
    let mut holding = Vec::new();
    for backend in backends {
        for subject in plan.subjects(&**backend, Scenario::Held) {
            let worker = worker::spawn(&WorkerArguments {
                role: Scenario::Held,
                on: backend.name(),
                at: backend.location().unwrap_or_default(),
                subject: subject.name().to_owned(),
                runtime,
                count: leases,
                seconds,
            })?;
            holding.push((backend.name().name(), subject, worker));
        }
    }
    let mut rows = Vec::new();
    for (backend, subject, mut worker) in holding {
        let line = worker.hear(PATIENCE + Duration::from_secs(seconds))?;
        let mut figures = line.split(' ').map(str::parse::<f64>);
        let (Some(Ok(cpu_percent)), Some(Ok(bytes_per_lease))) = (figures.next(), figures.next()) else {
            return Err(HarnessError::new(format!("a worker said {line:?}")));
        };
        let row = Row::new(backend, Scenario::Held, leases, &*subject, runtime, Figure::Costs(vec![cpu_percent]));
        rows.push(Row { cpu_percent: Some(cpu_percent), bytes_per_lease: Some(bytes_per_lease), ..row });
    }
    Ok(rows)
}

/// The worker.
pub(crate) async fn measure<S: Source>(source: &S, leases: usize, duration: Duration) -> Result<Holding> {
    process::raise_open_files();
    let locks = source.open().await?;
    // What is needed once, however many leases there are.
    let warm = acquire_all(&locks, "warm", TASKS).await?;
    release_all(&locks, warm).await?;
    let before = process::resident()?;
    let held = acquire_all(&locks, "held", leases).await?;
    time::sleep(PAUSE).await;
    let bytes = process::resident()?.saturating_sub(before);
    let (cpu, started) = (process::cpu_time(), Instant::now());
    if S::Locks::RENEWED_BY_HAND {
        renew_all(&locks, &held, duration).await?;
    } else {
        time::sleep(duration).await;
    }
    let cpu_percent = (process::cpu_time() - cpu).as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
    // Fails if one was lost.
    release_all(&locks, held).await?;
    locks.close().await?;
    Ok(Holding { cpu_percent, bytes_per_lease: bytes as f64 / leases as f64 })
}

async fn acquire_all<L: Locks>(locks: &L, name: &str, leases: usize) -> Result<Vec<Held<L>>> {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let mine: Vec<_> = (task..leases).step_by(TASKS).map(|n| locks.lock(&format!("{name}/{n}"))).collect();
        tasks.spawn(async move {
            let mut held = Vec::with_capacity(mine.len());
            for mut lock in mine {
                held.push(lock.acquire().await?);
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

/// One after the other, evenly.
async fn renew_all<L: Locks>(locks: &L, held: &[Held<L>], duration: Duration) -> Result<()> {
    let mut ticks = time::interval(STEP);
    let started = Instant::now();
    let mut renewed = 0;
    while started.elapsed() < duration {
        ticks.tick().await;
        let due = (started.elapsed().as_secs_f64() / RENEWAL.as_secs_f64() * held.len() as f64) as usize;
        for n in renewed..due {
            locks.renew(&held[n % held.len()]).await?;
        }
        renewed = due;
    }
    Ok(())
}

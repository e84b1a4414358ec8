//! `counter`: many tasks increment one value under one lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use leasehold_integration::{HarnessError, Result};
use tokio::{
    sync::Mutex,
    task::{JoinSet, yield_now},
};

use super::Scenario;
use crate::{
    backend::Backend,
    figures::Latencies,
    plan::Plan,
    progress::Progress,
    row::{Figure, Row},
    subject::{FLOOR, Lock, Locks, Source},
};

const TASKS: usize = 16;
const INCREMENTS: usize = 2_000;

/// The wait of each of the [`INCREMENTS`], and the number of increments per second.
#[derive(Debug)]
pub(crate) struct Count {
    pub(crate) waits: Vec<u64>,
    pub(crate) per_second: f64,
}

pub(super) fn run(plan: &Plan, backend: &dyn Backend, progress: &Progress) -> Result<Vec<Row>> {
    let subjects = plan.subjects(backend, Scenario::Counter);
    let name = backend.name().name();
    let mut rows = Vec::new();
    for &kind in plan.runtimes {
        let mut measured: Vec<_> = subjects
            .iter()
            .map(|_| (Latencies::new(), Vec::new()))
            .collect();
        for round in 0..plan.rounds {
            for (subject, (latencies, rates)) in subjects.iter().zip(&mut measured) {
                // One round is enough for a subject that polls.
                if round > 0 && !subject.period().is_zero() {
                    continue;
                }
                progress.step(format_args!(
                    "{name}: counter of {TASKS} tasks, {}, {}",
                    kind.name(),
                    subject.name()
                ));
                let count = kind.build()?.block_on(subject.count(TASKS))?;
                latencies.extend(&count.waits);
                rates.push(count.per_second);
            }
        }
        rows.extend(
            subjects
                .iter()
                .zip(measured)
                .map(|(subject, (latencies, rates))| {
                    Row::new(
                        name,
                        Scenario::Counter,
                        TASKS,
                        &**subject,
                        kind,
                        Figure::Rates(rates),
                    )
                    .with_latencies(&latencies)
                }),
        );
    }
    Ok(rows)
}

pub(crate) async fn measure<S: Source>(source: &S, tasks: usize) -> Result<Count> {
    let locks = source.open().await?;
    // The floor has no local queue, so a tokio mutex orders the tasks of the process.
    let queue = (source.name() == FLOOR).then(|| Arc::new(Mutex::new(())));
    let value = Arc::new(AtomicU64::new(0));
    let each = INCREMENTS / tasks;
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (lock, queue, value) = (locks.lock("counter"), queue.clone(), Arc::clone(&value));
        running.spawn(increments(lock, queue, value, each));
    }
    let mut waits = Vec::new();
    while let Some(done) = running.join_next().await {
        waits.append(&mut done.map_err(|error| HarnessError::caused_by("a task failed", error))??);
    }
    let elapsed = started.elapsed();
    locks.close().await?;
    let (counted, expected) = (value.load(Ordering::Relaxed), (each * tasks) as u64);
    if counted != expected {
        return Err(HarnessError::new(format!(
            "{}: {counted} of {expected} increments survived",
            source.name()
        )));
    }
    Ok(Count {
        per_second: expected as f64 / elapsed.as_secs_f64(),
        waits,
    })
}

async fn increments<L: Lock>(
    mut lock: L,
    queue: Option<Arc<Mutex<()>>>,
    value: Arc<AtomicU64>,
    each: usize,
) -> Result<Vec<u64>> {
    let mut waits = Vec::with_capacity(each);
    for _ in 0..each {
        let started = Instant::now();
        let turn = match &queue {
            Some(queue) => Some(queue.lock().await),
            None => None,
        };
        let held = lock.acquire().await?;
        waits.push(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        // A read and a later write without atomicity, so that a missing lock loses updates.
        let read = value.load(Ordering::Relaxed);
        yield_now().await;
        value.store(read + 1, Ordering::Relaxed);
        lock.release(held).await?;
        drop(turn);
    }
    Ok(waits)
}

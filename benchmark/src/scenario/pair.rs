//! `pair`: acquire and release, each task with its own key.

use std::time::{Duration, Instant};

use leasehold_integration::{HarnessError, Result};
use tokio::task::{JoinSet, yield_now};

use super::Scenario;
use crate::{
    backend::Backend,
    figures::Latencies,
    plan::Plan,
    progress::Progress,
    row::{Figure, Row},
    subject::{Lock, Locks, Source},
};

/// The number of pairs after which a task yields even if it never waited, because a memory backend
/// answers immediately.
const TURN: usize = 64;

/// The measurement of one subject in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairRound {
    pub(crate) tasks: usize,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// The duration of each pair in nanoseconds, and the number of pairs per second.
#[derive(Debug)]
pub(crate) struct Pairs {
    pub(crate) nanos: Vec<u64>,
    pub(crate) per_second: f64,
}

pub(super) fn run(plan: &Plan, backend: &dyn Backend, progress: &Progress) -> Result<Vec<Row>> {
    let subjects = plan.subjects(backend, Scenario::Pair);
    let name = backend.name().name();
    let mut rows = Vec::new();
    for &kind in plan.runtimes {
        for &tasks in &plan.tasks {
            progress.step(format_args!(
                "{name}: pairs of {tasks} tasks, {}",
                kind.name()
            ));
            let mut measured: Vec<_> = subjects
                .iter()
                .map(|_| (Latencies::new(), Vec::new()))
                .collect();
            for round in 0..plan.rounds {
                // The order alternates, so that no subject always comes first.
                let mut turn: Vec<_> = subjects.iter().zip(&mut measured).collect();
                if round % 2 == 1 {
                    turn.reverse();
                }
                for (subject, (latencies, rates)) in turn {
                    let (warm_up, time) =
                        (plan.pair.0 * backend.pace(), plan.pair.1 * backend.pace());
                    let pairs = kind.build()?.block_on(subject.pairs(PairRound {
                        tasks,
                        warm_up,
                        time,
                    }))?;
                    latencies.extend(&pairs.nanos);
                    rates.push(pairs.per_second);
                }
            }
            rows.extend(
                subjects
                    .iter()
                    .zip(measured)
                    .map(|(subject, (latencies, rates))| {
                        Row::new(
                            name,
                            Scenario::Pair,
                            tasks,
                            &**subject,
                            kind,
                            Figure::Rates(rates),
                        )
                        .with_latencies(&latencies)
                    }),
            );
        }
    }
    Ok(rows)
}

pub(crate) async fn measure<S: Source>(source: &S, round: PairRound) -> Result<Pairs> {
    let locks = source.open().await?;
    let begin = Instant::now() + round.warm_up;
    let end = begin + round.time;
    let mut tasks = JoinSet::new();
    for n in 0..round.tasks {
        let lock = locks.lock(&format!("pair/{n}"));
        tasks.spawn(pairs(lock, begin, end));
    }
    let mut nanos = Vec::new();
    while let Some(done) = tasks.join_next().await {
        nanos.append(&mut done.map_err(|error| HarnessError::caused_by("a task failed", error))??);
    }
    locks.close().await?;
    Ok(Pairs {
        per_second: nanos.len() as f64 / round.time.as_secs_f64(),
        nanos,
    })
}

/// Runs pair after pair and returns those that ended between `begin` and `end`.
async fn pairs<L: Lock>(mut lock: L, begin: Instant, end: Instant) -> Result<Vec<u64>> {
    let mut nanos = Vec::new();
    let mut started = Instant::now();
    for n in 1_usize.. {
        let held = lock.acquire().await?;
        lock.release(held).await?;
        let now = Instant::now();
        if now >= end {
            break;
        }
        if now >= begin {
            nanos.push(u64::try_from((now - started).as_nanos()).unwrap_or(u64::MAX));
        }
        started = now;
        if n.is_multiple_of(TURN) {
            yield_now().await;
        }
    }
    Ok(nanos)
}

//! `stopped`: the duration of an acquisition while nodes of a quorum are paused.
//!
//! A paused server keeps its connections and answers nothing, so only a client that does not wait
//! for it keeps its speed. The measurement starts with the pause, before a client can notice it.

use std::{
    thread,
    time::{Duration, Instant},
};

use leasehold_integration::Result;

use super::Scenario;
use crate::{
    backend::Backend,
    figures::Latencies,
    plan::Plan,
    progress::Progress,
    row::{Figure, Row},
    runtime::RuntimeKind,
    subject::{Lock, Locks, Source},
};

/// The time until a resumed node has answered its queued requests and is trusted again.
const RECOVERY: Duration = Duration::from_millis(2_500);

pub(super) fn run(plan: &Plan, backend: &dyn Backend, progress: &Progress) -> Result<Vec<Row>> {
    let name = backend.name().name();
    let most = backend.nodes().saturating_sub(1) / 2;
    if most == 0 {
        return Ok(Vec::new());
    }
    let runtime = plan
        .runtimes
        .first()
        .copied()
        .unwrap_or(RuntimeKind::CurrentThread);
    let mut rows = Vec::new();
    for subject in plan.subjects(backend, Scenario::Stopped) {
        let mut measured: Vec<_> = (0..=most).map(|_| (Latencies::new(), Vec::new())).collect();
        for _ in 0..plan.stops {
            for (stopped, (latencies, tails)) in measured.iter_mut().enumerate() {
                progress.step(format_args!("{name}: {stopped} nodes stopped"));
                backend.stop_nodes(0)?;
                let stop = || backend.stop_nodes(stopped);
                let nanos = runtime
                    .build()?
                    .block_on(subject.acquire_while(plan.stopped_for, &stop));
                backend.resume_nodes()?;
                let nanos = nanos?;
                tails.push(Latencies::of(&nanos).quantile(0.99));
                latencies.extend(&nanos);
                if stopped > 0 {
                    thread::sleep(RECOVERY);
                }
            }
        }
        for (stopped, (latencies, tails)) in measured.into_iter().enumerate() {
            // The column of tasks has the number of paused nodes.
            let row = Row::new(
                name,
                Scenario::Stopped,
                stopped,
                &*subject,
                runtime,
                Figure::Costs(tails),
            );
            rows.push(row.with_latencies(&latencies));
        }
    }
    Ok(rows)
}

/// Returns the duration of each acquisition in nanoseconds, measured from the call of `stop`.
pub(crate) async fn measure<S: Source>(
    source: &S,
    time: Duration,
    stop: &(dyn Fn() -> Result<()> + Sync),
) -> Result<Vec<u64>> {
    let locks = source.open().await?;
    let mut lock = locks.lock("stopped");
    // Warms up.
    for _ in 0..100 {
        let held = lock.acquire().await?;
        lock.release(held).await?;
    }
    stop()?;
    let end = Instant::now() + time;
    let mut nanos = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        let held = lock.acquire().await?;
        nanos.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        lock.release(held).await?;
    }
    // Lets background work finish, which releases locks that the next round needs.
    locks.close().await?;
    Ok(nanos)
}

//! `contenders`: 16 tasks in 4 processes contend for one lock all the time. Measures the wait of a
//! task, in hand-offs between other tasks.

use std::time::Duration;

use leasehold_integration::{HarnessError, Result, peer::tell};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinSet};

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
    subject::{Lock, Locks, Source},
    worker,
};

const PROCESSES: usize = 4;
const TASKS: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn run(plan: &Plan, backend: &dyn Backend, progress: &Progress) -> Result<Vec<Row>> {
    let name = backend.name().name();
    let Some(location) = backend.location() else {
        return Ok(Vec::new());
    };
    let runtime = plan
        .runtimes
        .first()
        .copied()
        .unwrap_or(RuntimeKind::CurrentThread);
    let mut rows = Vec::new();
    for subject in plan.subjects(backend, Scenario::Contenders) {
        progress.step(format_args!(
            "{name}: {} contenders of {}",
            PROCESSES * TASKS,
            subject.name()
        ));
        let spawn = || {
            worker::spawn(&WorkerArguments {
                role: Scenario::Contenders,
                on: backend.name(),
                at: location.clone(),
                subject: subject.name().to_owned(),
                runtime,
                count: TASKS,
                seconds: plan.contenders_for,
            })
        };
        let mut peers = (0..PROCESSES)
            .map(|_| spawn())
            .collect::<Result<Vec<_>>>()?;
        for peer in &mut peers {
            peer.hear(TIMEOUT)?;
        }
        for peer in &mut peers {
            peer.say("go")?;
        }
        let mut waits: Vec<(u64, u64)> = Vec::new();
        for peer in &mut peers {
            let stamps = peer.hear(TIMEOUT)?;
            let stamps: Result<Vec<u64>, _> = stamps.split_whitespace().map(str::parse).collect();
            let stamps = stamps
                .map_err(|error| HarnessError::caused_by("a worker did not send numbers", error))?;
            waits.extend(stamps.chunks_exact(2).map(|wait| (wait[0], wait[1])));
        }
        let mut grants: Vec<_> = waits.iter().map(|(_, held)| *held).collect();
        grants.sort_unstable();
        let at = |stamp: u64| grants.partition_point(|granted| *granted < stamp);
        let handoffs: Vec<_> = waits
            .iter()
            .map(|(began, held)| (at(*held) - at(*began)) as f64)
            .collect();
        let nanos: Vec<_> = waits.iter().map(|(began, held)| held - began).collect();
        let mut row = Row::new(
            name,
            Scenario::Contenders,
            PROCESSES * TASKS,
            &*subject,
            runtime,
            Figure::Costs(Vec::new()),
        );
        row.handoffs_waited_p50 = median(handoffs.iter().copied());
        row.handoffs_waited_max = handoffs.iter().copied().reduce(f64::max);
        row.per_second = Some(grants.len() as f64 / plan.contenders_for as f64);
        rows.push(row.with_latencies(&Latencies::of(&nanos)));
    }
    Ok(rows)
}

/// Runs the worker: records when each task began to wait, and when it held the lock.
pub(crate) async fn take_part<S: Source>(
    source: &S,
    tasks: usize,
    time: Duration,
    mut orders: UnboundedReceiver<String>,
) -> Result<()> {
    let locks = source.open().await?;
    tell("ready");
    if orders.recv().await.is_none() {
        return Ok(());
    }
    let end = process::now() + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut contenders = JoinSet::new();
    for _ in 0..tasks {
        let lock = locks.lock("contenders");
        contenders.spawn(contend(lock, end));
    }
    let mut stamps = Vec::new();
    while let Some(done) = contenders.join_next().await {
        stamps.extend(done.map_err(|error| HarnessError::caused_by("a task failed", error))??);
    }
    let stamps: Vec<_> = stamps
        .iter()
        .map(|(began, held)| format!("{began} {held}"))
        .collect();
    tell(stamps.join(" "));
    Ok(())
}

async fn contend<L: Lock>(mut lock: L, end: u64) -> Result<Vec<(u64, u64)>> {
    let mut stamps = Vec::new();
    loop {
        let began = process::now();
        if began >= end {
            return Ok(stamps);
        }
        let held = lock.acquire().await?;
        stamps.push((began, process::now()));
        lock.release(held).await?;
    }
}

//! Another process of a measurement, which runs this program again.

use std::{env, thread, time::Duration};

use leasehold_integration::{
    HarnessError, Result,
    peer::{Peer, listen, tell},
};
use tokio::sync::mpsc;

use super::{arguments::WorkerArguments, scenario::Scenario};

/// Starts a worker process.
pub(super) fn spawn(arguments: &WorkerArguments) -> Result<Peer> {
    let program = env::current_exe().map_err(|error| {
        HarnessError::caused_by("cannot determine the path of this program", error)
    })?;
    Peer::spawn(program, arguments.to_command_line())
}

/// Runs a worker process.
pub(super) fn run(arguments: &WorkerArguments) -> Result<()> {
    let WorkerArguments {
        role,
        on,
        at,
        subject,
        runtime,
        count,
        seconds,
    } = arguments.clone();
    let found = on
        .subjects_at(&at)
        .into_iter()
        .find(|candidate| candidate.name() == subject);
    let subject = found
        .ok_or_else(|| HarnessError::new(format!("{} has no subject {subject:?}", on.name())))?;
    let (give, orders) = mpsc::unbounded_channel();
    // The thread blocks in a read and ends with the process.
    thread::spawn(move || {
        while let Some(order) = listen() {
            if give.send(order).is_err() {
                return;
            }
        }
    });
    let runtime = runtime.build()?;
    // Spawned, so that it runs on a worker thread as tasks usually do.
    let work = runtime.spawn(async move {
        match role {
            Scenario::Handoff | Scenario::HandoffBusy => subject.take_turns(orders).await,
            Scenario::Crowd => subject.crowd(count, orders).await,
            Scenario::Contenders => {
                subject
                    .contend(count, Duration::from_secs(seconds), orders)
                    .await
            }
            Scenario::Held => {
                let holding = subject.hold(count, Duration::from_secs(seconds)).await?;
                tell(format_args!(
                    "{} {}",
                    holding.cpu_percent, holding.bytes_per_lease
                ));
                Ok(())
            }
            Scenario::Pair | Scenario::All | Scenario::Counter | Scenario::Stopped => {
                Err(HarnessError::new("this scenario has no worker process"))
            }
        }
    });
    runtime
        .block_on(work)
        .map_err(|error| HarnessError::caused_by("a worker failed", error))?
}

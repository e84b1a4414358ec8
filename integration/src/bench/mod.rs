//! The benchmark: every subject beside the floor of the same run.
//!
//! Absolute figures move with the machine and with whatever else runs on it. So all subjects of a
//! measurement take turns, round by round, against the same server, each on a fresh runtime of the
//! same kind, and what is reported beside the figures is the median of the rounds' *ratios* to the
//! floor: the bare driver that does the same round trips.
//!
//! The peer `distributed-lock` is measured in `pair` alone: on one Redis server its 0.2.0 does not
//! wait. Its `acquire(None)` answers `Timeout` at the first refusal, since `redlock/acquire.rs`
//! returns `Ok(None)` where `SET NX` was refused; a loop around it would measure the loop's own
//! sleep.
//!
//! A backend is one file in `backend`; what it is compared with is a `Source` each. A scenario
//! is one file in `scenario` and knows no backend. Nothing here asserts a time: it only prints.

mod arguments;
mod backend;
mod figures;
mod plan;
mod plot;
mod process;
mod progress;
mod report;
mod row;
mod runtime;
mod scenario;
mod subject;
mod worker;

use clap::Parser;

use self::{
    arguments::{Arguments, Command},
    plan::Plan,
    progress::Progress,
};
use crate::Result;

/// What `bench` does: parses the command line, measures, prints.
///
/// # Errors
/// A server or a worker process cannot be started, a subject fails, or an update was lost under a
/// lock.
pub fn main() -> Result<()> {
    let arguments = Arguments::parse();
    process::raise_open_files();
    match &arguments.command {
        Some(Command::Worker(worker)) => return worker::run(worker),
        Some(Command::Plot { figures, to }) => return plot::draw(figures, to),
        None => {}
    }
    let plan = Plan::new(&arguments);
    let progress = Progress::new();
    let backends = plan
        .backends
        .iter()
        .map(|name| name.start())
        .collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for scenario in &plan.scenarios {
        rows.extend(scenario.run(&plan, &backends, &progress)?);
        for backend in &backends {
            for (subject, why) in plan.excuses(&**backend, *scenario) {
                progress.skip(format_args!("{} of {subject}: {why}", scenario.name()));
            }
        }
    }
    progress.finish();
    report::relate(&mut rows);
    println!("{}", report::table(&rows));
    for skipped in progress.skipped() {
        println!("not measured: {skipped}");
    }
    if let Some(file) = &arguments.json {
        report::write_json(&rows, file)?;
    }
    Ok(())
}

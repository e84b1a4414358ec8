//! The benchmark of Leasehold: every subject compared with the floor of the same run.
//!
//! Absolute figures depend on the machine and its load. All subjects of a measurement therefore
//! take turns, round by round, against the same server, each on a new runtime of the same kind.
//! Beside the figures, the report has the median of the rounds' *ratios* to the floor, which is the
//! bare driver with the same round trips.
//!
//! `distributed-lock` is measured in `pair` only, because its version 0.2.0 does not wait on a
//! single Redis server. Its `acquire(None)` returns `Timeout` at the first refusal, since
//! `redlock/acquire.rs` returns `Ok(None)` when `SET NX` is refused. A loop around it would measure
//! the loop's own sleep.
//!
//! Each backend is a file in `backend`, and each of its subjects is a `Source`. Each scenario is a
//! file in `scenario` and independent of the backend. The benchmark prints times and never asserts
//! them.

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
use leasehold_integration::Result;

use self::{
    arguments::{Arguments, Command},
    plan::Plan,
    progress::Progress,
};

/// Runs the benchmark: parses the command line, measures and prints.
///
/// # Errors
/// A server or a worker process cannot be started, a subject fails, or an update was lost under a
/// lock.
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    process::raise_open_files();
    match &arguments.command {
        Some(Command::Worker(worker)) => return worker::run(worker),
        Some(Command::Plot {
            figures,
            to,
            caption,
        }) => return plot::draw(figures, to, caption),
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

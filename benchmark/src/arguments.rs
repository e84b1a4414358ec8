//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{backend::BackendName, runtime::RuntimeKind, scenario::Scenario};

const AFTER_HELP: &str = "\
Scenarios:
  pair      acquire and release, each task its own key
  all       acquire and release 8 keys under one guard, beside one lock
  handoff   from the start of a release until another process, which waits, has the lock
  handoff-busy   the same beside 500 unrelated writes per second
  counter   16 tasks increment one value 2 000 times in all; fails if an increment is lost
  held      10 000 leases that are only held: processor time and memory
  crowd     1 000 waiters in one process: requests per hand-off, and how long another process waits beside them
  contenders  16 tasks in 4 processes that want one lock all the time: the longest wait, in hand-offs
  stopped   on redlock: acquisitions while 0, 1, 2 of 5 servers (in the column of tasks) are stopped

Subjects:
  leasehold          what users have, with the defaults
  floor              the bare driver (or file lock, or mutex) doing the same round trips; on etcd Go's Mutex over one
                     lease and one warm watch
  scripts            on Redis: the bare driver that sends Leasehold's acquire script and its release script, where the
                     floor, as Leasehold, acquires by cheaper commands
  plain              on Redis: SET NX PX and a script that compares and deletes
  rslock, distributed-lock   on Redis: other crates, with their defaults
  moving             on ZooKeeper: the floor, where a waiter that is granted replaces its node, as a waiter of
                     Leasehold with a TTL above 5 s must
  driver             on ZooKeeper: the lock that the driver itself has
  sqlx-pool          on Postgres: sqlx's advisory lock on a pool of 16 connections; no tokens, no lease

All subjects take turns in short rounds against one server, so compare the ratios: absolute figures move with the
machine. integration/setup.sh installs the servers. LEASEHOLD_BENCH_FSYNC=1 lets Postgres wait for the disk; otherwise it is
the code that is measured.

Examples:
  bench --quick                                    everything, in a few minutes
  bench --on redis --scenario pair --tasks 1       one measurement, at full length
  bench --on redis --on file --json figures.json   an array of objects, one for each row of the table
  bench plot figures.json figures.svg --caption 'commit 1fa4ad5, 2 cores'   draws them";

/// Measures Leasehold beside bare drivers and other lock libraries, on servers that it starts
/// itself.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// A backend to measure, may be repeated; all by default
    #[arg(long = "on", value_name = "BACKEND")]
    pub(super) backends: Vec<BackendName>,
    /// A scenario to measure, may be repeated; all by default
    #[arg(long = "scenario", value_name = "SCENARIO")]
    pub(super) scenarios: Vec<Scenario>,
    /// A number of tasks in `pair`, may be repeated; 1, 16, 64 and 256 by default
    #[arg(long, value_name = "TASKS")]
    pub(super) tasks: Vec<usize>,
    /// A subject to measure, may be repeated; all by default. Ratios to the floor require the floor
    #[arg(long = "subject", value_name = "SUBJECT")]
    pub(super) subjects: Vec<String>,
    /// Measure fewer and shorter rounds and fewer leases, with less precision
    #[arg(long)]
    pub(super) quick: bool,
    /// Also write the figures to this file, as a JSON array
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// The runtime that the subjects run on
    #[arg(long, value_name = "KIND", default_value = "both")]
    pub(super) runtime: Runtimes,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// The runtimes to measure on.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Runtimes {
    TwoWorkers,
    CurrentThread,
    Both,
}

impl Runtimes {
    pub(super) fn kinds(self) -> &'static [RuntimeKind] {
        match self {
            Self::TwoWorkers => &[RuntimeKind::TwoWorkers],
            Self::CurrentThread => &[RuntimeKind::CurrentThread],
            Self::Both => &[RuntimeKind::TwoWorkers, RuntimeKind::CurrentThread],
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs another process of a measurement
    #[command(hide = true)]
    Worker(WorkerArguments),
    /// Draws a chart of a file written by --json
    Plot {
        /// The JSON file
        figures: PathBuf,
        /// The SVG file
        to: PathBuf,
        /// A line below the chart: the date, the commit and the machine of the figures
        #[arg(long, default_value = "")]
        caption: String,
    },
}

/// The arguments of a worker process.
#[derive(Clone, Debug, Args)]
pub(super) struct WorkerArguments {
    /// The scenario
    #[arg(long)]
    pub(super) role: Scenario,
    /// The backend
    #[arg(long)]
    pub(super) on: BackendName,
    /// The location of the backend
    #[arg(long)]
    pub(super) at: String,
    /// The subject
    #[arg(long)]
    pub(super) subject: String,
    /// The runtime
    #[arg(long)]
    pub(super) runtime: RuntimeKind,
    /// The number of leases or waiters
    #[arg(long, default_value_t = 1)]
    pub(super) count: usize,
    /// The duration in seconds
    #[arg(long, default_value_t = 0)]
    pub(super) seconds: u64,
}

impl WorkerArguments {
    /// Returns the command line that parses to these arguments.
    pub(super) fn to_command_line(&self) -> Vec<String> {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |v| v.get_name().to_owned())
        };
        use clap::ValueEnum;
        [
            "worker",
            "--role",
            &name(self.role.to_possible_value()),
            "--on",
            &name(self.on.to_possible_value()),
            "--at",
            &self.at,
            "--subject",
            &self.subject,
            "--runtime",
            &name(self.runtime.to_possible_value()),
            "--count",
            &self.count.to_string(),
            "--seconds",
            &self.seconds.to_string(),
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

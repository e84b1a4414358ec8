//! The fault suite runs cases with faults of processes, servers and connections on every backend.
//!
//! A case is an async function over a [`Fixture`](fixture::Fixture), such as
//! `redis::late_request_leaves_no_lock_for_good`. If a backend lacks what a case needs, the
//! case is listed as ignored, with the reason. Faults that are particular to one kind of server are
//! in the tests of that backend.
//!
//! The backends are those whose features are enabled. `LEASEHOLD_BACKENDS=redis,etcd` selects some
//! of them.

mod backends;
mod cases;
mod closing;
mod crowd;
mod dropped;
mod election;
mod fixture;
mod network;
mod once;
mod processes;
mod release;
mod server;
mod support;
mod together;

use std::{process::ExitCode, time::Duration};

use leasehold_integration::{chosen, panics};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;

use crate::{cases::Case, fixture::Backend};

/// Most cases wait most of the time.
const THREADS: usize = 8;

/// The limit of a case, which only a hang reaches.
const LIMIT: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    panics::record();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let backends = match chosen::backends(backends::ALL, |backend| backend.name) {
        Ok(backends) => backends,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let trials = backends
        .into_iter()
        .flat_map(|backend| cases::ALL.iter().map(move |case| trial(backend, case)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(backend: &'static Backend, case: &'static Case) -> Trial {
    Trial::ignorable_test(format!("{}::{}", backend.name, case.name), move || {
        if let Some(reason) = backend.reason_against(case.needs) {
            return Ok(Completion::ignored_with(reason));
        }
        run(backend, case)
    })
}

fn run(backend: &Backend, case: &Case) -> Result<Completion, Failed> {
    // Cases run beside each other: a panic fails those that were running, and no later one.
    let before = panics::recorded().len();
    let mut fixture = (backend.start)(case.lease);
    let runtime = Runtime::new()?;
    let ended =
        runtime.block_on(async { tokio::time::timeout(LIMIT, (case.run)(&mut *fixture)).await });
    // A task that has not ended may still use the servers.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if ended.is_err() {
        return Err(Failed::from(format!("not ended within {LIMIT:?}")));
    }
    let panics = panics::recorded().split_off(before);
    if panics.is_empty() {
        Ok(Completion::Completed)
    } else {
        Err(Failed::from(format!("a task has panicked: {panics:?}")))
    }
}

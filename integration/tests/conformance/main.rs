//! The conformance suite of `leasehold-testkit` for every backend, on real servers, in one run that
//! ends with a table of backends and properties.
//!
//! The backends are those whose features are enabled. `LEASEHOLD_BACKENDS=redis,etcd` selects some
//! of them. The test starts a server for each, unless its URL is in the environment:
//! `LEASEHOLD_REDIS_URL`, `LEASEHOLD_ETCD_URL`, and so on.

mod backend;
mod table;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use leasehold_integration::chosen;
use leasehold_testkit::{Outcome, Wrapped, Wrapping, cases, run_case};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::table::Table;

/// Most cases wait most of the time.
const THREADS: usize = 8;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let backends = match chosen::backends(backend::ALL, |backend| backend.name) {
        Ok(backends) => backends,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let table = Arc::new(Mutex::new(Table::default()));
    let mut trials = Vec::new();
    for backend in backends {
        for wrapping in Wrapping::ALL {
            for case in cases::all() {
                let table = Arc::clone(&table);
                let run = move || {
                    let outcome = backend.run(async {
                        let fixture = (backend.fixture)().await;
                        run_case(&Wrapped::new(&fixture, wrapping), &case).await
                    });
                    table.lock().unwrap_or_else(PoisonError::into_inner).add(
                        backend.name,
                        case.name,
                        &outcome,
                    );
                    match outcome {
                        Outcome::Failed(what) => Err(Failed::from(what)),
                        _ => Ok(()),
                    }
                };
                trials.push(Trial::test(
                    format!("{}::{}::{}", backend.name, name_of(wrapping), case.name),
                    run,
                ));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{}", table.lock().unwrap_or_else(PoisonError::into_inner));
    }
    conclusion.exit_code()
}

fn name_of(wrapping: Wrapping) -> &'static str {
    match wrapping {
        Wrapping::Bare => "bare",
        Wrapping::ArcDyn => "arc_dyn",
        Wrapping::Forwarding => "forwarding",
    }
}

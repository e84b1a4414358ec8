//! What the tests that [`conformance!`](crate::conformance) generates call.

use std::future::Future;

use crate::{
    form::{Form, InForm},
    registry::cases,
    report::{Outcome, reason_not_to, run_one},
    subject::Subject,
};

/// Whether time is real or paused: `start_paused` of tokio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "they are the words that the macro takes")]
pub enum Time {
    /// Real, on two workers.
    real,
    /// Paused, on one thread: it goes on by itself when every task sleeps.
    paused,
}

impl Time {
    fn block_on<T>(self, work: impl Future<Output = T>) -> T {
        let runtime = match self {
            Self::real => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
            Self::paused => tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build(),
        };
        match runtime {
            Ok(runtime) => runtime.block_on(work),
            Err(error) => panic!("no tokio runtime: {error}"),
        }
    }
}

/// Runs the case of this name; panics if it fails.
pub fn test<Fut: Future<Output = Box<dyn Subject>>>(time: Time, subject: fn() -> Fut, form: Form, name: &str) {
    time.block_on(async {
        let subject = subject().await;
        let Some(case) = cases().into_iter().find(|case| case.name == name) else { panic!("no case is named {name}") };
        match run_one(&InForm::new(&*subject, form).in_paused_time(time == Time::paused), &case).await {
            Outcome::Passed => {}
            Outcome::Failed(what) => panic!("{name}: {what}"),
            Outcome::NotRun(reason) => println!("not run: {name}: {reason}"),
        }
    });
}

/// Prints every case that is not run, with its reason.
pub fn print_not_run<Fut: Future<Output = Box<dyn Subject>>>(time: Time, subject: fn() -> Fut) {
    time.block_on(async {
        let subject = subject().await;
        for case in cases() {
            if let Some(reason) = reason_not_to(&*subject, &case).await {
                println!("not run: {}: {reason}", case.name);
            }
        }
    });
}

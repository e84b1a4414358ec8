//! The functions that the tests of [`conformance!`](crate::conformance) call.

use std::{
    any::Any,
    cell::RefCell,
    future::Future,
    panic::{self, PanicHookInfo},
    sync::Once,
};

use crate::{
    backend_fixture::BackendFixture,
    cases,
    report::{Outcome, message, reason_not_to, run_case},
    wrapping::{Wrapped, Wrapping},
};

/// The time of a test's runtime: real, or paused by tokio's `start_paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the macro takes the variants as words")]
pub enum Time {
    /// Real time, on two worker threads.
    real,
    /// Paused time, on one thread. It advances when every task sleeps.
    paused,
}

impl Time {
    fn block_on<T>(self, work: impl Future<Output = T>) -> T {
        let runtime = match self {
            Self::real => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build(),
            Self::paused => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build(),
        };
        match runtime {
            Ok(runtime) => runtime.block_on(work),
            Err(error) => panic!("no tokio runtime: {error}"),
        }
    }
}

/// Runs the case called `name`. Panics if the case fails, with one message and no backtrace.
pub fn test<Fut: Future<Output = Box<dyn BackendFixture>>>(
    time: Time,
    fixture: fn() -> Fut,
    wrapping: Wrapping,
    name: &str,
) {
    let (outcome, panics) = recording_panics(|| {
        time.block_on(async {
            let fixture = fixture().await;
            let Some(case) = cases::all().into_iter().find(|case| case.name == name) else {
                return Outcome::Failed(String::from("there is no such case"));
            };
            run_case(
                &Wrapped::new(&*fixture, wrapping).in_paused_time(time == Time::paused),
                &case,
            )
            .await
        })
    });
    match outcome {
        Ok(Outcome::Passed) => {}
        Ok(Outcome::NotRun(reason)) => println!("not run: {name}: {reason}"),
        Ok(Outcome::Failed(what)) => fail(&format!("{name}: {what}"), &panics),
        Err(panic) => fail(
            &format!("{name}: no fixture: {}", message(&*panic)),
            &panics,
        ),
    }
}

thread_local! {
    /// The recorded panics of this thread, or `None` while no case runs on it.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs `work` and returns the panics on this thread instead of printing them. Each entry has the
/// message and the location of one panic.
fn recording_panics<T>(work: impl FnOnce() -> T) -> (std::thread::Result<T>, Vec<String>) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !record(info) {
                previous(info);
            }
        }));
    });
    PANICS.set(Some(Vec::new()));
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(work));
    (outcome, PANICS.take().unwrap_or_default())
}

/// Records the panic if a case runs on this thread. Returns whether it was recorded.
fn record(info: &PanicHookInfo<'_>) -> bool {
    let recorded = PANICS.try_with(|panics| match &mut *panics.borrow_mut() {
        Some(panics) => {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            panics.push(format!("{} ({place})", message(info.payload())));
            true
        }
        None => false,
    });
    recorded.unwrap_or(false)
}

/// Fails the test and prints its panics. The last panic is the failure; earlier ones may have
/// caused it.
fn fail(what: &str, panics: &[String]) -> ! {
    eprintln!("{what}");
    for panic in panics {
        eprintln!("  panic: {panic}");
    }
    // `panic!` would run the hook, which prints the message again with a backtrace.
    panic::resume_unwind(Box::new(what.to_owned()) as Box<dyn Any + Send>)
}

/// Prints every case that does not apply to the backend, with the reason.
pub fn print_not_run<Fut: Future<Output = Box<dyn BackendFixture>>>(
    time: Time,
    fixture: fn() -> Fut,
) {
    time.block_on(async {
        let fixture = fixture().await;
        for case in cases::all() {
            if let Some(reason) = reason_not_to(&*fixture, &case).await {
                println!("not run: {}: {reason}", case.name);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::mutants::{Bug, ModelFixture};

    thread_local! {
        static PRINTED: Cell<usize> = const { Cell::new(0) };
    }

    async fn broken() -> Box<dyn BackendFixture> {
        Box::new(ModelFixture::with(Bug::TokenPerClient))
    }

    #[test]
    fn failed_case_is_reported_once_with_its_location() {
        // Counts the panics that would be printed with a backtrace.
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PRINTED.set(PRINTED.get() + 1);
            previous(info);
        }));
        let name = Bug::TokenPerClient.case();
        let failed =
            panic::catch_unwind(|| test(Time::paused, broken, Wrapping::Bare, name)).unwrap_err();
        assert_eq!(PRINTED.get(), 0);
        let reported = message(&*failed);
        assert!(reported.starts_with(&format!("{name}: ")), "{reported}");
        let (_, panics) = recording_panics(|| panic!("a claim"));
        assert!(
            panics[0].starts_with("a claim (") && panics[0].contains("harness.rs:"),
            "{panics:?}"
        );
        assert_eq!(PRINTED.get(), 0);
    }
}

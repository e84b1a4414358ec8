//! [`run_all`]: the suite as a program runs it.

use std::{any::Any, fmt, panic::AssertUnwindSafe};

use futures_util::FutureExt;

use crate::{backend_fixture::BackendFixture, case::Case, cases};

/// What became of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The claim holds.
    Passed,
    /// It does not: the message says what was seen.
    Failed(String),
    /// The backend does not promise it: the reason.
    NotRun(String),
}

/// One case and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseReport {
    /// The case's name.
    pub case: &'static str,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of all cases. [`Display`](fmt::Display) is one line per case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of [`cases`](crate::cases::all()).
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// The names of the cases that failed.
    #[must_use]
    pub fn failed(&self) -> Vec<&'static str> {
        let failed = self
            .cases
            .iter()
            .filter(|report| matches!(report.outcome, Outcome::Failed(_)));
        failed.map(|report| report.case).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for CaseReport { case, outcome } in &self.cases {
            match outcome {
                Outcome::Passed => writeln!(f, "passed: {case}")?,
                Outcome::Failed(what) => writeln!(f, "failed: {case}: {what}")?,
                Outcome::NotRun(reason) => writeln!(f, "not run: {case}: {reason}")?,
            }
        }
        Ok(())
    }
}

/// Runs the cases that `filter` chooses, one after the other. A panic is a failure, and so is
/// taking longer than [`BackendFixture::limit`].
///
/// # Cancel safety
/// Dropping it stops at once; locks of the running case expire.
pub async fn run_all(fixture: &dyn BackendFixture, filter: impl Fn(&Case) -> bool) -> Report {
    let mut report = Report::default();
    for case in cases::all().into_iter().filter(filter) {
        report.cases.push(CaseReport {
            case: case.name,
            outcome: run_case(fixture, &case).await,
        });
    }
    report
}

/// Runs one case, if the fixture can be asked for it. A panic is a failure, and so is taking longer
/// than [`BackendFixture::limit`].
///
/// # Cancel safety
/// As [`run_all`].
pub async fn run_case(fixture: &dyn BackendFixture, case: &Case) -> Outcome {
    if let Some(reason) = reason_not_to(fixture, case).await {
        return Outcome::NotRun(reason);
    }
    let limit = fixture.limit();
    let run = AssertUnwindSafe((case.run)(fixture)).catch_unwind();
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(panic)) => Outcome::Failed(message(&*panic)),
        Err(_elapsed) => Outcome::Failed(format!("it was not over within {limit:?}")),
    }
}

pub(crate) async fn reason_not_to(fixture: &dyn BackendFixture, case: &Case) -> Option<String> {
    if let Some(skip_reason) = fixture.skip_reason(case.name) {
        return Some(skip_reason);
    }
    (case.needs)(&fixture.open().await.capabilities())
        .err()
        .map(String::from)
}

pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&'static str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it panicked").to_owned()
}

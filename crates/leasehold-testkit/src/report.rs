//! [`run_all`]: runs the suite in a program and returns a [`Report`].

use std::{any::Any, fmt, panic::AssertUnwindSafe};

use futures_util::FutureExt;

use crate::{backend_fixture::BackendFixture, case::Case, cases};

/// The outcome of one case.
///
/// ```
/// use leasehold_testkit::{Outcome, cases, mutants::ModelFixture, run_case};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let fixture = ModelFixture::healthy();
/// let case = &cases::all()[0];
/// assert_eq!(run_case(&fixture, case).await, Outcome::Passed);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The property holds.
    Passed,
    /// The property does not hold, with the message of the failed check.
    Failed(String),
    /// The case does not apply to the backend or was skipped, with the reason.
    NotRun(String),
}

/// A case and its outcome.
///
/// ```
/// use leasehold_testkit::{Outcome, mutants::ModelFixture, run_all};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let fixture = ModelFixture::healthy();
/// let report = run_all(&fixture, |case| case.concept == "fencing").await;
/// for case in report.cases {
///     assert_eq!(case.outcome, Outcome::Passed, "{}", case.case);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseReport {
    /// The name of the case.
    pub case: &'static str,
    /// The outcome of the case.
    pub outcome: Outcome,
}

/// The outcomes of all cases. [`Display`](fmt::Display) prints one line per case.
///
/// ```
/// use leasehold_testkit::{CaseReport, Outcome, Report};
///
/// let report = Report {
///     cases: vec![CaseReport {
///         case: "readers_share",
///         outcome: Outcome::NotRun("there are no shared locks".to_owned()),
///     }],
/// };
/// assert!(report.failed().is_empty());
/// assert_eq!(report.to_string(), "not run: readers_share: there are no shared locks\n");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The outcomes, in the order of [`cases::all`].
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// Returns the names of the cases that failed.
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

/// Runs the cases that `filter` selects, one after another. A case fails if it panics or takes
/// longer than [`BackendFixture::limit`].
///
/// # Cancel safety
/// Dropping the future stops the run. The locks of the running case expire.
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

/// Runs one case if it applies to the backend. The case fails if it panics or takes longer than
/// [`BackendFixture::limit`].
///
/// # Cancel safety
/// Dropping the future stops the case. Its locks expire.
pub async fn run_case(fixture: &dyn BackendFixture, case: &Case) -> Outcome {
    if let Some(reason) = reason_not_to(fixture, case).await {
        return Outcome::NotRun(reason);
    }
    let limit = fixture.limit();
    let run = AssertUnwindSafe((case.run)(fixture)).catch_unwind();
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(panic)) => Outcome::Failed(message(&*panic)),
        Err(_elapsed) => Outcome::Failed(format!("the case did not finish within {limit:?}")),
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
    text.unwrap_or("a panic without a message").to_owned()
}

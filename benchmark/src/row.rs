//! [`Row`]: the figures of one subject.

use serde::Serialize;

use super::{
    figures::{Latencies, median},
    runtime::RuntimeKind,
    scenario::Scenario,
    subject::Subject,
};

/// The figures of one subject in one scenario; `None` where a figure does not apply.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) backend: &'static str,
    pub(super) scenario: Scenario,
    pub(super) tasks: usize,
    pub(super) subject: &'static str,
    pub(super) runtime: &'static str,
    /// The median of the rounds.
    pub(super) per_second: Option<f64>,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) max_us: Option<f64>,
    /// The percentage of one core.
    pub(super) cpu_percent: Option<f64>,
    pub(super) bytes_per_lease: Option<f64>,
    /// The number of requests to the server.
    pub(super) commands_per_handoff: Option<f64>,
    /// The number of hand-offs between other tasks during one wait of the process beside a crowd.
    pub(super) handoffs_waited_p50: Option<f64>,
    pub(super) handoffs_waited_max: Option<f64>,
    /// The ratio of this figure to the floor's, see [`Figure`].
    pub(super) to_floor: Option<f64>,
    /// The ratio of Leasehold's figure to this one.
    #[serde(skip)]
    pub(super) leasehold_to_it: Option<f64>,
    #[serde(skip)]
    pub(super) figure: Figure,
}

/// The figure that is compared round by round.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Figure {
    /// A higher value is better.
    Rates(Vec<f64>),
    /// A lower value is better.
    Costs(Vec<f64>),
}

impl Figure {
    /// Returns the median of the ratios of corresponding rounds.
    pub(super) fn over(&self, other: &Self) -> Option<f64> {
        let ((Self::Rates(ours), Self::Rates(theirs)) | (Self::Costs(ours), Self::Costs(theirs))) =
            (self, other)
        else {
            return None;
        };
        median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
            .filter(|ratio| ratio.is_finite())
    }
}

impl Row {
    pub(super) fn new(
        backend: &'static str,
        scenario: Scenario,
        tasks: usize,
        subject: &dyn Subject,
        runtime: RuntimeKind,
        figure: Figure,
    ) -> Self {
        Self {
            backend,
            scenario,
            tasks,
            subject: subject.name(),
            runtime: runtime.name(),
            per_second: match &figure {
                Figure::Rates(rates) => median(rates.iter().copied()),
                Figure::Costs(_) => None,
            },
            p50_us: None,
            p99_us: None,
            max_us: None,
            cpu_percent: None,
            bytes_per_lease: None,
            commands_per_handoff: None,
            handoffs_waited_p50: None,
            handoffs_waited_max: None,
            to_floor: None,
            leasehold_to_it: None,
            figure,
        }
    }

    pub(super) fn with_latencies(mut self, latencies: &Latencies) -> Self {
        self.p50_us = Some(latencies.quantile(0.5));
        self.p99_us = Some(latencies.quantile(0.99));
        self.max_us = Some(latencies.max());
        self
    }
}

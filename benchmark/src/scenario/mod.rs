//! The scenarios that can be measured, one file each.

pub(super) mod all;
pub(super) mod contenders;
pub(super) mod counter;
pub(super) mod crowd;
pub(super) mod handoff;
pub(super) mod held;
pub(super) mod pair;
pub(super) mod stopped;

use leasehold_integration::Result;
use serde::Serialize;

use super::{backend::Backend, plan::Plan, progress::Progress, row::Row};

/// The scenarios by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// Acquire and release, each task with its own key.
    Pair,
    /// Acquire and release several keys under one guard, beside one lock.
    All,
    /// The time from the start of a release until a waiting process holds the lock.
    Handoff,
    /// The same while another client writes to the server.
    HandoffBusy,
    /// Many tasks increment one value under one lock.
    Counter,
    /// Many idle leases.
    Held,
    /// A thousand waiters in one process.
    Crowd,
    /// Several processes that contend for one lock all the time.
    Contenders,
    /// Acquisitions while nodes of a quorum are paused.
    Stopped,
}

impl Scenario {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::All => "all",
            Self::Handoff => "handoff",
            Self::HandoffBusy => "handoff-busy",
            Self::Counter => "counter",
            Self::Held => "held",
            Self::Crowd => "crowd",
            Self::Contenders => "contenders",
            Self::Stopped => "stopped",
        }
    }

    /// Measures this scenario on all backends.
    pub(super) fn run(
        self,
        plan: &Plan,
        backends: &[Box<dyn Backend>],
        progress: &Progress,
    ) -> Result<Vec<Row>> {
        if self == Self::Held {
            return held::run(plan, backends, progress);
        }
        let mut rows = Vec::new();
        for backend in backends {
            rows.extend(match self {
                Self::Pair => pair::run(plan, &**backend, progress)?,
                Self::All => all::run(plan, &**backend, progress)?,
                Self::Handoff | Self::HandoffBusy => {
                    handoff::run(self, plan, &**backend, progress)?
                }
                Self::Counter => counter::run(plan, &**backend, progress)?,
                Self::Crowd => crowd::run(plan, &**backend, progress)?,
                Self::Contenders => contenders::run(plan, &**backend, progress)?,
                Self::Stopped => stopped::run(plan, &**backend, progress)?,
                Self::Held => Vec::new(),
            });
        }
        Ok(rows)
    }
}

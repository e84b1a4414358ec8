//! [`RuntimeKind`].

use leasehold_integration::{HarnessError, Result};
use tokio::runtime::{Builder, Runtime};

/// The runtime that a subject runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum RuntimeKind {
    /// Two worker threads.
    TwoWorkers,
    /// One thread.
    CurrentThread,
}

impl RuntimeKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TwoWorkers => "two-workers",
            Self::CurrentThread => "current-thread",
        }
    }

    /// Builds a new runtime, so that no measurement affects the next one.
    pub(super) fn build(self) -> Result<Runtime> {
        let mut builder = match self {
            Self::TwoWorkers => Builder::new_multi_thread(),
            Self::CurrentThread => Builder::new_current_thread(),
        };
        builder
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| HarnessError::caused_by("cannot build a runtime", error))
    }
}

//! [`ModelFixture`]: the model as a backend under test.

use std::sync::Arc;

use async_trait::async_trait;
use leasehold_core::{Clock, SystemClock, TestClock, Ttl, backend::LockBackend};

use super::{bug::Bug, model::Store};
use crate::backend_fixture::BackendFixture;

/// A fixture for the model, with or without a bug.
///
/// ```
/// use leasehold_testkit::{mutants::ModelFixture, run_all};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let report = run_all(&ModelFixture::healthy(), |case| case.concept == "fencing").await;
/// assert!(report.failed().is_empty());
/// # }
/// ```
#[derive(Debug)]
pub struct ModelFixture {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    ttl: Ttl,
    paused: bool,
}

impl ModelFixture {
    /// Creates the model without a bug, in paused time.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    #[must_use]
    pub fn healthy() -> Self {
        Self::new(None)
    }

    /// Creates the model with a bug, in paused time.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    #[must_use]
    pub fn with(bug: Bug) -> Self {
        Self::new(Some(bug))
    }

    /// Creates the model without a bug and without latency, in paused time. Every call completes in
    /// its first poll.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    #[must_use]
    pub fn instant() -> Self {
        Self::paused(None, true, false)
    }

    /// Creates the model without a bug, in paused time. It stores the proposals of candidates with
    /// their acquisitions, as [`Capabilities::proposals`](leasehold_core::Capabilities::proposals)
    /// says.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    #[must_use]
    pub fn with_proposals() -> Self {
        Self::paused(None, false, true)
    }

    /// Creates the model without a bug, in real time.
    #[must_use]
    pub fn in_real_time() -> Self {
        Self::real(None)
    }

    /// Creates the model with a bug, in real time.
    #[must_use]
    pub fn with_in_real_time(bug: Bug) -> Self {
        Self::real(Some(bug))
    }

    fn new(bug: Option<Bug>) -> Self {
        Self::paused(bug, false, bug.is_some_and(Bug::is_of_proposals))
    }

    fn paused(bug: Option<Bug>, instant: bool, proposals: bool) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::new());
        Self {
            store: Store::new(Arc::clone(&clock), bug, instant, proposals),
            clock,
            ttl: Ttl::from_secs(10).unwrap_or_default(),
            paused: true,
        }
    }

    fn real(bug: Option<Bug>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let proposals = bug.is_some_and(Bug::is_of_proposals);
        Self {
            store: Store::new(Arc::clone(&clock), bug, false, proposals),
            clock,
            ttl: Ttl::from_secs(1).unwrap_or_default(),
            paused: false,
        }
    }
}

#[async_trait]
impl BackendFixture for ModelFixture {
    async fn open(&self) -> Arc<dyn LockBackend> {
        self.store.open()
    }

    fn ttl(&self) -> Ttl {
        self.ttl
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn is_time_paused(&self) -> bool {
        self.paused
    }
}

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
        Self::on(Arc::new(TestClock::new()), None, true, 10, true)
    }

    /// Creates the model without a bug, in real time.
    #[must_use]
    pub fn in_real_time() -> Self {
        Self::on(Arc::new(SystemClock), None, false, 1, false)
    }

    /// Creates the model with a bug, in real time.
    #[must_use]
    pub fn with_in_real_time(bug: Bug) -> Self {
        Self::on(Arc::new(SystemClock), Some(bug), false, 1, false)
    }

    fn new(bug: Option<Bug>) -> Self {
        Self::on(Arc::new(TestClock::new()), bug, false, 10, true)
    }

    fn on(clock: Arc<dyn Clock>, bug: Option<Bug>, instant: bool, ttl: u64, paused: bool) -> Self {
        Self {
            store: Store::new(Arc::clone(&clock), bug, instant),
            clock,
            ttl: Ttl::from_secs(ttl).unwrap_or_default(),
            paused,
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

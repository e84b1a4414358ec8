//! [`ModelFixture`]: the model as a backend under test.

use std::sync::Arc;

use async_trait::async_trait;
use leasehold_core::{Clock, LockBackend, SystemClock, TestClock, Ttl};

use super::{bug::Bug, model::Store};
use crate::backend_fixture::BackendFixture;

/// The model as a fixture, with a bug or healthy.
#[derive(Debug)]
pub struct ModelFixture {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    ttl: Ttl,
    paused: bool,
}

impl ModelFixture {
    /// The model without a bug.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn healthy() -> Self {
        Self::new(None)
    }

    /// The model with this bug.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn with(bug: Bug) -> Self {
        Self::new(Some(bug))
    }

    /// The model without a bug and without any latency: every answer comes in the first poll.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn instant() -> Self {
        Self::on(Arc::new(TestClock::new()), None, true, 10, true)
    }

    /// The model without a bug, in real time.
    #[must_use]
    pub fn in_real_time() -> Self {
        Self::on(Arc::new(SystemClock), None, false, 1, false)
    }

    /// The model with this bug, in real time.
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

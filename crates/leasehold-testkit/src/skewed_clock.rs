//! [`SkewedClock`]: a clock that a case can push ahead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{Clock, Timestamp};

/// Another clock, pushed ahead: one client's clock that is skewed, or that went on while the
/// machine slept.
#[derive(Debug)]
pub struct SkewedClock {
    base: Arc<dyn Clock>,
    ahead: AtomicU64,
}

impl SkewedClock {
    /// A clock that agrees with `base` until it is pushed.
    #[must_use]
    pub fn new(base: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            base,
            ahead: AtomicU64::new(0),
        })
    }

    /// Pushes the clock ahead by this much.
    pub fn push(&self, ahead: Duration) {
        self.ahead.fetch_add(
            u64::try_from(ahead.as_nanos()).unwrap_or(u64::MAX),
            Ordering::AcqRel,
        );
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        self.base.now() + Duration::from_nanos(self.ahead.load(Ordering::Acquire))
    }
}

//! [`SkewedClock`]: a clock that a test can set ahead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{Clock, Timestamp};

/// A clock that can be set ahead of another one. It stands for a client whose clock is skewed or
/// whose machine was suspended.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use leasehold_core::{Clock, TestClock};
/// use leasehold_testkit::SkewedClock;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let base: Arc<dyn Clock> = Arc::new(TestClock::new());
/// let skewed = SkewedClock::new(base.clone());
/// skewed.push(Duration::from_secs(5));
/// assert_eq!(skewed.now().since(base.now()), Duration::from_secs(5));
/// # }
/// ```
#[derive(Debug)]
pub struct SkewedClock {
    base: Arc<dyn Clock>,
    ahead: AtomicU64,
}

impl SkewedClock {
    /// Creates a clock that agrees with `base` until it is set ahead.
    #[must_use]
    pub fn new(base: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            base,
            ahead: AtomicU64::new(0),
        })
    }

    /// Sets the clock ahead by this much more.
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

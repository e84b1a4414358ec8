//! [`SimClock`]: one machine's clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{Clock, Timestamp};
use tokio::time::Instant;

/// The true time at which a simulation begins, on every clock that is set right: far from zero.
const BEGINNING: Duration = Duration::from_secs(1_000_000);

/// Follows tokio's time, which a test can pause, but is set ahead and goes faster or slower.
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    ahead: AtomicU64,
    rate_ppm: i32,
}

impl SimClock {
    /// A clock that is right.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::wrong(Duration::ZERO, 0)
    }

    /// A clock that is this much ahead, and gains this many microseconds per second (loses, if
    /// negative).
    #[must_use]
    pub fn wrong(ahead: Duration, rate_ppm: i32) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            ahead: AtomicU64::new(nanos(ahead)),
            rate_ppm,
        })
    }

    /// Lets time pass on this clock but not for tokio's timers: what the suspend of a machine does,
    /// and what setting its wall clock ahead does to a node.
    pub fn suspend(&self, duration: Duration) {
        self.ahead.fetch_add(nanos(duration), Ordering::AcqRel);
    }

    /// Nanoseconds of true time from the beginning of the simulation until this clock shows
    /// `moment`, if nothing pushes it. To compare the beliefs of machines with different clocks.
    #[must_use]
    pub fn true_time_of(&self, moment: Timestamp) -> u64 {
        let shown = moment
            .as_nanos()
            .saturating_sub(nanos(BEGINNING))
            .saturating_sub(self.ahead.load(Ordering::Acquire));
        let elapsed = u128::from(shown) * 1_000_000 / self.per_million();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    /// Nanoseconds of true time since the beginning of the simulation.
    #[must_use]
    pub fn true_time(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    fn per_million(&self) -> u128 {
        u128::from(1_000_000_u32.saturating_add_signed(self.rate_ppm))
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let shown = self.start.elapsed().as_nanos() * self.per_million() / 1_000_000;
        let ahead = Duration::from_nanos(self.ahead.load(Ordering::Acquire));
        Timestamp::from_nanos(u64::try_from(shown).unwrap_or(u64::MAX)) + BEGINNING + ahead
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_gains_what_it_is_told_to_and_translates_back() {
        let (right, wrong) = (
            SimClock::new(),
            SimClock::wrong(Duration::from_secs(7), 5_000),
        );
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(wrong.now().since(right.now()), Duration::from_millis(7_050));
        assert_eq!(wrong.true_time_of(wrong.now()), wrong.true_time());
        assert_eq!(right.true_time(), 10_000_000_000);
        wrong.suspend(Duration::from_secs(1));
        assert_eq!(wrong.now().since(right.now()), Duration::from_millis(8_050));
    }
}

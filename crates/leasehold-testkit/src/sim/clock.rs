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

/// The time that a correct clock shows at the beginning of a simulation. It is far from zero.
const BEGINNING: Duration = Duration::from_secs(1_000_000);

/// A clock that follows tokio's time, with an offset and a rate.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::Clock;
/// use leasehold_testkit::sim::SimClock;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let (correct, fast) = (SimClock::new(), SimClock::wrong(Duration::ZERO, 5_000));
/// tokio::time::advance(Duration::from_secs(10)).await;
/// assert_eq!(fast.now().since(correct.now()), Duration::from_millis(50));
/// # }
/// ```
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    ahead: AtomicU64,
    rate_ppm: i32,
}

impl SimClock {
    /// Creates a correct clock.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::wrong(Duration::ZERO, 0)
    }

    /// Creates a clock that is `ahead` of a correct one and gains `rate_ppm` microseconds per
    /// second. It loses them if the rate is negative.
    #[must_use]
    pub fn wrong(ahead: Duration, rate_ppm: i32) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            ahead: AtomicU64::new(nanos(ahead)),
            rate_ppm,
        })
    }

    /// Sets the clock ahead without firing tokio's timers, as after the suspension of a client's
    /// machine or a step of a server's wall clock.
    pub fn suspend(&self, duration: Duration) {
        self.ahead.fetch_add(nanos(duration), Ordering::AcqRel);
    }

    /// Returns the true time at which this clock shows `moment`, in nanoseconds since the beginning
    /// of the simulation, if the clock is not set until then. It makes the deadlines of machines
    /// with different clocks comparable.
    #[must_use]
    pub fn true_time_of(&self, moment: Timestamp) -> u64 {
        let shown = moment
            .as_nanos()
            .saturating_sub(nanos(BEGINNING))
            .saturating_sub(self.ahead.load(Ordering::Acquire));
        let elapsed = u128::from(shown) * 1_000_000 / self.per_million();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    /// Returns the true time in nanoseconds since the beginning of the simulation.
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
    async fn clock_follows_its_rate_and_converts_to_true_time() {
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

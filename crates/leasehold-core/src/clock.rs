//! Time as leases need it: [`Clock`], [`Timestamp`], [`Deadline`] and [`ClockDrift`].

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::ttl::Ttl;

/// A clock that never goes back and goes on while the machine is suspended.
///
/// Core reads time only through this. [`SystemClock`] is the real one; [`TestClock`] is for tests.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present. Must not panic.
    fn now(&self) -> Timestamp;
}

/// A reading of a [`Clock`]: nanoseconds since a point that is fixed for that clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment this many nanoseconds after the clock's fixed point.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's fixed point.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since an `earlier` moment; zero if it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// The moment from which a lease must be believed lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deadline(Timestamp);

impl Deadline {
    /// A deadline at this moment.
    #[must_use]
    pub const fn at(moment: Timestamp) -> Self {
        Self(moment)
    }

    /// The moment.
    #[must_use]
    pub const fn moment(self) -> Timestamp {
        self.0
    }

    /// Whether it has come.
    #[must_use]
    pub fn is_past(self, now: Timestamp) -> bool {
        now >= self.0
    }

    /// The time left; zero once it has come.
    #[must_use]
    pub const fn remaining(self, now: Timestamp) -> Duration {
        self.0.since(now)
    }
}

/// How far two clocks may part while a lease runs: the holder stops believing that much earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClockDrift {
    /// Parts per million of the TTL.
    pub rate_ppm: u32,
    /// And this much on top, for what does not grow with the TTL.
    #[cfg_attr(feature = "serde", serde(rename = "constant_ms"))]
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_impls::millis"))]
    pub constant: Duration,
}

impl ClockDrift {
    /// For a backend that reads the same clock as the client.
    pub const NONE: Self = Self {
        rate_ppm: 0,
        constant: Duration::ZERO,
    };

    /// 1 % and 2 ms, as in the Redlock algorithm's published implementations. Quartz is a hundred
    /// times better; a virtual machine under a bad hypervisor is not.
    pub const DEFAULT: Self = Self {
        rate_ppm: 10_000,
        constant: Duration::from_millis(2),
    };

    /// When a grant of `ttl` that was asked for at `sent` must be believed over. `sent` is read
    /// *before* the request leaves, because the server may have started to count at once.
    #[must_use]
    pub fn deadline(self, sent: Timestamp, ttl: Ttl) -> Deadline {
        let ttl = ttl.as_millis() * 1_000_000;
        let rate = u64::try_from(u128::from(ttl) * u128::from(self.rate_ppm) / 1_000_000)
            .unwrap_or(u64::MAX);
        let constant = u64::try_from(self.constant.as_nanos()).unwrap_or(u64::MAX);
        let valid = ttl.saturating_sub(rate).saturating_sub(constant);
        Deadline(Timestamp(sent.0.saturating_add(valid)))
    }
}

/// A deadline that renewals move, shared by a lease and its guard.
///
/// It keeps rule one of leases: once the deadline has been seen to pass, nothing revives it.
#[derive(Debug)]
pub struct AtomicDeadline(AtomicU64);

impl AtomicDeadline {
    /// Starts at `deadline`.
    #[must_use]
    pub const fn new(deadline: Deadline) -> Self {
        Self(AtomicU64::new(deadline.0.0))
    }

    /// The deadline as it stands. To decide whether it has passed, read the clock *first*: then
    /// whoever sees it past and whoever moves it can never both be right.
    #[must_use]
    pub fn get(&self) -> Deadline {
        Deadline(Timestamp(self.0.load(Ordering::Acquire)))
    }

    /// Moves the deadline to `to`, never back. `now` is read when the renewal's answer is in hand.
    /// `false`, and no change, if the deadline has passed by then.
    #[must_use]
    pub fn advance(&self, to: Deadline, now: Timestamp) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |current| {
                (now.0 < current).then_some(current.max(to.0.0))
            })
            .is_ok()
    }
}

/// `CLOCK_BOOTTIME` on Linux, which counts through suspend; elsewhere [`std::time::Instant`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn now(&self) -> Timestamp {
        use rustix::time::{ClockId, clock_gettime};
        let time = clock_gettime(ClockId::Boottime);
        let secs = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Timestamp(secs * 1_000_000_000 + nanos)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn now(&self) -> Timestamp {
        use std::{sync::OnceLock, time::Instant};
        static START: OnceLock<Instant> = OnceLock::new();
        Timestamp(1) + START.get_or_init(Instant::now).elapsed()
    }
}

/// A clock for tests: follows tokio's time, which a test can pause and advance, and can be
/// [suspended](Self::suspend).
#[derive(Debug)]
pub struct TestClock {
    start: tokio::time::Instant,
    suspended: AtomicU64,
}

impl TestClock {
    /// Starts at the present of tokio's time.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: tokio::time::Instant::now(),
            suspended: AtomicU64::new(0),
        }
    }

    /// Lets `duration` pass on this clock, but not on tokio's timers: what the suspend of a machine
    /// does.
    pub fn suspend(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.suspended.fetch_add(nanos, Ordering::AcqRel);
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let suspended = self.suspended.load(Ordering::Acquire);
        // An hour in, so that no test comes near zero.
        Timestamp(3_600_000_000_000) + self.start.elapsed() + Duration::from_nanos(suspended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn the_deadline_counts_from_the_send_and_is_short_by_the_drift() {
        let deadline = ClockDrift::DEFAULT.deadline(at(1_000), Ttl::from_secs(10).unwrap());
        assert_eq!(deadline, Deadline::at(at(1_000 + 10_000 - 100 - 2)));
        assert_eq!(
            ClockDrift::DEFAULT.deadline(at(5), Ttl::MIN),
            Deadline::at(at(5))
        );
        assert_eq!(
            ClockDrift::NONE.deadline(at(5), Ttl::MIN),
            Deadline::at(at(6))
        );
    }

    #[test]
    fn a_late_renewal_does_not_revive() {
        let live = AtomicDeadline::new(Deadline::at(at(100)));
        assert!(live.advance(Deadline::at(at(200)), at(99)));
        assert!(live.advance(Deadline::at(at(150)), at(199)));
        assert_eq!(live.get(), Deadline::at(at(200)));
        assert!(!live.advance(Deadline::at(at(300)), at(200)));
        assert_eq!(live.get(), Deadline::at(at(200)));
    }

    #[test]
    fn the_system_clock_goes_forward() {
        let first = SystemClock.now();
        assert!(first.as_nanos() > 0);
        assert!(SystemClock.now() >= first);
    }
}

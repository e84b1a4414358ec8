//! Time: [`Clock`], [`Timestamp`], [`Deadline`] and [`ClockDrift`].

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::ttl::Ttl;

/// A monotonic clock that also counts the time for which the machine is suspended.
///
/// The client reads time only through this trait. [`SystemClock`] reads the operating system's
/// clock, and [`TestClock`] is for tests.
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::{Clock, LockClient, Timestamp};
/// # use leasehold_local::MemoryBackend;
///
/// /// A clock that stands still.
/// #[derive(Debug)]
/// struct Stopped;
///
/// impl Clock for Stopped {
///     fn now(&self) -> Timestamp {
///         Timestamp::from_nanos(1_000)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let client = LockClient::builder(MemoryBackend::new()).with_clock(Arc::new(Stopped)).build();
/// # drop(client);
/// # }
/// ```
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the current time. It must not panic.
    fn now(&self) -> Timestamp;
}

/// A reading of a [`Clock`]: the number of nanoseconds since a fixed point of that clock.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::{Clock, SystemClock};
///
/// let sent = SystemClock.now();
/// let later = sent + Duration::from_secs(5);
/// assert_eq!(later.since(sent), Duration::from_secs(5));
/// assert_eq!(sent.since(later), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Creates a timestamp this many nanoseconds after the clock's fixed point.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the number of nanoseconds since the clock's fixed point.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time elapsed since `earlier`, or zero if `earlier` is later than this timestamp.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Adds a duration, saturating at the largest timestamp.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// The time at and after which a lease must be treated as lost.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let guard = client.mutex("item/42").lock().await?;
/// let deadline = guard.deadline();
/// assert!(guard.remaining() <= guard.ttl().as_duration());
/// guard.renew().await?;
/// assert!(guard.deadline() >= deadline);
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deadline(Timestamp);

impl Deadline {
    /// Creates a deadline at this timestamp.
    #[must_use]
    pub const fn at(moment: Timestamp) -> Self {
        Self(moment)
    }

    /// Returns the timestamp of the deadline.
    #[must_use]
    pub const fn moment(self) -> Timestamp {
        self.0
    }

    /// Returns whether the deadline has passed at `now`.
    #[must_use]
    pub fn is_past(self, now: Timestamp) -> bool {
        now >= self.0
    }

    /// Returns the time left at `now`, or zero if the deadline has passed.
    #[must_use]
    pub const fn remaining(self, now: Timestamp) -> Duration {
        self.0.since(now)
    }
}

/// The maximum difference that two clocks may develop while a lease runs.
///
/// The holder's deadline is earlier than the TTL by this much.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::{ClockDrift, Timestamp, Ttl};
///
/// let sent = Timestamp::from_nanos(0);
/// let deadline = ClockDrift::DEFAULT.deadline(sent, Ttl::from_secs(10)?);
/// // The deadline is earlier by 1 % of the TTL and by 2 ms.
/// assert_eq!(deadline.remaining(sent), Duration::from_millis(9_898));
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClockDrift {
    /// The part that grows with the TTL, in parts per million.
    pub rate_ppm: u32,
    /// The part that does not depend on the TTL.
    #[cfg_attr(feature = "serde", serde(rename = "constant_ms"))]
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_impls::millis"))]
    pub constant: Duration,
}

impl ClockDrift {
    /// No drift, for a backend that reads the same clock as the client.
    pub const NONE: Self = Self {
        rate_ppm: 0,
        constant: Duration::ZERO,
    };

    /// 1 % and 2 ms, as in published implementations of the Redlock algorithm. Quartz clocks are a
    /// hundred times better, but the clock of a badly configured virtual machine is not.
    pub const DEFAULT: Self = Self {
        rate_ppm: 10_000,
        constant: Duration::from_millis(2),
    };

    /// Returns the deadline of a grant of `ttl` that was requested at `sent`. Read `sent` *before*
    /// the request is sent, because the server may have started to count at once.
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

/// A deadline shared by a lease and its guard, which renewals move.
///
/// Once the deadline has been observed to have passed, no renewal moves it any more.
///
/// ```
/// use leasehold_core::{Deadline, Timestamp, backend::AtomicDeadline};
///
/// let at = |seconds: u64| Timestamp::from_nanos(seconds * 1_000_000_000);
/// let deadline = AtomicDeadline::new(Deadline::at(at(10)));
/// assert!(deadline.advance(Deadline::at(at(15)), at(5)));
/// // A renewal that is answered after the deadline changes nothing.
/// assert!(!deadline.advance(Deadline::at(at(30)), at(20)));
/// assert_eq!(deadline.get(), Deadline::at(at(15)));
/// ```
#[derive(Debug)]
pub struct AtomicDeadline(AtomicU64);

impl AtomicDeadline {
    /// Creates a shared deadline that starts at `deadline`.
    #[must_use]
    pub const fn new(deadline: Deadline) -> Self {
        Self(AtomicU64::new(deadline.0.0))
    }

    /// Returns the current deadline. To decide whether it has passed, read the clock *first*. Then
    /// a reader that finds it passed and a renewal that moves it can never both succeed.
    #[must_use]
    pub fn get(&self) -> Deadline {
        Deadline(Timestamp(self.0.load(Ordering::Acquire)))
    }

    /// Moves the deadline to `to`, unless it is later already. `now` must be read after the answer
    /// to the renewal has arrived. Returns `false` and changes nothing if the deadline has passed
    /// at `now`.
    #[must_use]
    pub fn advance(&self, to: Deadline, now: Timestamp) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |current| {
                (now.0 < current).then_some(current.max(to.0.0))
            })
            .is_ok()
    }
}

/// The operating system's monotonic clock.
///
/// It reads `CLOCK_BOOTTIME` on Linux and Android, which counts while the machine is suspended, and
/// [`std::time::Instant`] elsewhere.
///
/// ```
/// use leasehold_core::{Clock, SystemClock};
///
/// let before = SystemClock.now();
/// assert!(SystemClock.now() >= before);
/// ```
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

/// A clock for tests. It follows tokio's time, which a test can pause and advance, and it can be
/// [suspended](Self::suspend).
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_local::MemoryBackend;
/// use std::sync::Arc;
/// use leasehold_core::{LockClient, TestClock};
///
/// let clock = Arc::new(TestClock::new());
/// let client = LockClient::builder(MemoryBackend::new()).with_clock(clock.clone()).build();
/// let guard = client.mutex("item/42").lock().await?;
/// clock.suspend(guard.ttl().as_duration());
/// assert!(!guard.is_held());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct TestClock {
    start: tokio::time::Instant,
    suspended: AtomicU64,
}

impl TestClock {
    /// Creates a clock that starts at the current tokio time.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: tokio::time::Instant::now(),
            suspended: AtomicU64::new(0),
        }
    }

    /// Advances this clock by `duration`, but not tokio's timers, as a suspend of the machine does.
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
        // The clock starts at one hour, so that no test subtracts below zero.
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

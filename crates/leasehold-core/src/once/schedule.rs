//! [`Schedule`] and [`Every`].

use std::{
    fmt::Debug,
    time::{Duration, SystemTime},
};

use crate::{
    error::{Error, ErrorKind, Result},
    once::unix_millis::UnixMillis,
};

/// The instants at which work is due. All replicas must have the same schedule.
///
/// [`Every`] is a schedule, and so is `Cron` with the feature `cron`. Implement the trait for
/// others, such as the opening hours of a shop. The two methods must agree: `next(t)` is the
/// smallest instant after `t`, and `latest(t)` the largest that is not after `t`. Instants are
/// whole milliseconds; parts of a millisecond are cut off.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use leasehold_core::once::Schedule;
///
/// /// Once, at a known instant.
/// #[derive(Debug)]
/// struct Launch(SystemTime);
///
/// impl Schedule for Launch {
///     fn latest(&self, at_or_before: SystemTime) -> Option<SystemTime> {
///         (self.0 <= at_or_before).then_some(self.0)
///     }
///     fn next(&self, after: SystemTime) -> Option<SystemTime> {
///         (self.0 > after).then_some(self.0)
///     }
///     fn text(&self) -> String {
///         "launch".into()
///     }
/// }
///
/// let launch = Launch(SystemTime::UNIX_EPOCH + Duration::from_secs(60));
/// assert_eq!(launch.latest(SystemTime::UNIX_EPOCH), None);
/// ```
pub trait Schedule: Debug + Send + Sync + 'static {
    /// Returns the last instant that is not after `at_or_before`.
    fn latest(&self, at_or_before: SystemTime) -> Option<SystemTime>;

    /// Returns the first instant after `after`.
    fn next(&self, after: SystemTime) -> Option<SystemTime>;

    /// Returns the schedule as text. It is kept in the history, for people.
    fn text(&self) -> String;
}

/// A schedule with a fixed period: the instants `anchor + k · period`, the same for all replicas.
///
/// The anchor is 1970-01-01 00:00:00 UTC unless it is set, so that `Every` hour is on the hour.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use leasehold_core::once::{Every, Schedule};
///
/// let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
/// let every = Every::new(Duration::from_secs(10))?;
/// assert_eq!((every.latest(at(25)), every.next(at(25))), (Some(at(20)), Some(at(30))));
/// assert_eq!(every.next(at(30)), Some(at(40)));
///
/// let shifted = every.with_anchor(at(1_003));
/// assert_eq!(shifted.latest(at(25)), Some(at(23)));
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Every {
    /// In milliseconds, at least 1.
    period: u64,
    /// The first instant that is not before 1970, in milliseconds.
    first: u64,
}

impl Every {
    /// Creates a schedule with this period.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the period is zero, not whole milliseconds, or longer than
    /// 36 525 days.
    pub fn new(period: Duration) -> Result<Self> {
        const LONGEST: Duration = Duration::from_secs(36_525 * 24 * 60 * 60);
        if period.is_zero() || period > LONGEST || !period.subsec_nanos().is_multiple_of(1_000_000)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a period of {period:?} is no schedule; give whole milliseconds from 1 ms to 36525 days"
                ),
            ));
        }
        let period = period.as_secs() * 1_000 + u64::from(period.subsec_millis());
        Ok(Self { period, first: 0 })
    }

    /// Sets one of the instants, rounded down to whole milliseconds. All others are a multiple of
    /// the period before or after it.
    #[must_use]
    pub fn with_anchor(mut self, anchor: SystemTime) -> Self {
        let first = match anchor.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => since.as_millis() % u128::from(self.period),
            Err(error) => {
                // Rounded down, which is away from 1970.
                let before = error.duration().as_nanos().div_ceil(1_000_000);
                let period = u128::from(self.period);
                (period - before % period) % period
            }
        };
        // The remainder is smaller than the period.
        self.first = first as u64;
        self
    }
}

impl Schedule for Every {
    fn latest(&self, at_or_before: SystemTime) -> Option<SystemTime> {
        let since = UnixMillis::of(at_or_before).get().checked_sub(self.first)?;
        let latest = self.first + since - since % self.period;
        UnixMillis::new(latest).map(UnixMillis::time)
    }

    fn next(&self, after: SystemTime) -> Option<SystemTime> {
        let next = match self.latest(after) {
            Some(latest) => UnixMillis::of(latest).get() + self.period,
            None => self.first,
        };
        UnixMillis::new(next).map(UnixMillis::time)
    }

    fn text(&self) -> String {
        let period = Duration::from_millis(self.period);
        match self.first {
            0 => format!("every {period:?}"),
            first => format!("every {period:?} from {:?}", Duration::from_millis(first)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn periods_that_are_no_schedule_are_refused() {
        for period in [
            Duration::ZERO,
            Duration::from_micros(1_500),
            Duration::from_secs(36_526 * 86_400),
        ] {
            let error = Every::new(period).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("whole milliseconds"), "{error}");
        }
    }

    #[test]
    fn text_names_period_and_anchor() {
        let every = Every::new(Duration::from_secs(90)).unwrap();
        assert_eq!(every.text(), "every 90s");
        let anchor = SystemTime::UNIX_EPOCH - Duration::from_millis(1);
        assert_eq!(every.with_anchor(anchor).text(), "every 90s from 89.999s");
    }

    proptest! {
        #[test]
        fn latest_and_next_surround_every_instant(
            period in 1_u64..100_000_000,
            anchor in -100_000_000_i64..100_000_000,
            at in 0_u64..1_000_000_000_000,
        ) {
            let epoch = SystemTime::UNIX_EPOCH;
            let shift = Duration::from_millis(anchor.unsigned_abs());
            let anchor = if anchor < 0 { epoch - shift } else { epoch + shift };
            let every = Every::new(Duration::from_millis(period)).unwrap().with_anchor(anchor);
            let at = epoch + Duration::from_millis(at);
            let next = every.next(at).unwrap();
            prop_assert!(next > at);
            prop_assert_eq!(every.latest(next), Some(next));
            if let Some(latest) = every.latest(at) {
                prop_assert!(latest <= at);
                prop_assert_eq!(next.duration_since(latest).unwrap(), Duration::from_millis(period));
                let from = latest.max(anchor).duration_since(latest.min(anchor)).unwrap();
                prop_assert_eq!(from.as_millis() % u128::from(period), 0);
            }
        }
    }
}

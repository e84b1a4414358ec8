//! [`UnixMillis`]: an instant as the record of runs has it.

use std::time::{Duration, SystemTime};

/// The largest instant: the last millisecond of the year 9999. Every platform can represent it.
const MAX: u64 = 253_402_300_799_999;

/// An instant in whole milliseconds since 1970, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct UnixMillis(u64);

impl UnixMillis {
    /// Returns the instant, or `None` if it is after the year 9999.
    pub(crate) fn new(millis: u64) -> Option<Self> {
        (millis <= MAX).then_some(Self(millis))
    }

    /// Rounds a time down to whole milliseconds. A time before 1970 or after 9999 becomes the
    /// nearest instant.
    pub(crate) fn of(time: SystemTime) -> Self {
        let since = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self(millis(since).min(MAX))
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }

    pub(crate) fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0)
    }

    /// Returns the last instant before this one, as far as there is one.
    pub(crate) fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Returns the instant that is later by `duration`, in whole milliseconds.
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)).min(MAX))
    }

    /// Returns the time that has passed since `earlier`, or zero if it is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_out_of_range_become_the_nearest_instant() {
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(UnixMillis::of(epoch - Duration::from_secs(1)).get(), 0);
        assert_eq!(
            UnixMillis::of(epoch + Duration::from_micros(1_999)).get(),
            1
        );
        let last = UnixMillis::new(MAX).unwrap();
        assert_eq!(UnixMillis::of(last.time() + Duration::from_secs(1)), last);
        assert_eq!(last.after(Duration::MAX), last);
        assert_eq!(UnixMillis::new(MAX + 1), None);
    }
}

//! [`WallClock`]: the wall clock that the backend shows beside its records.

use std::time::SystemTime;

use leasehold_core::Timestamp;

#[derive(Debug)]
pub(super) enum WallClock {
    /// The wall clock of the machine.
    System,
    /// A clock that showed `time` when the backend's own clock showed `at`, and advances with it.
    From { time: SystemTime, at: Timestamp },
}

impl WallClock {
    /// Returns the time. `now` is the time on the backend's own clock.
    pub(super) fn now(&self, now: Timestamp) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::From { time, at } => *time + now.since(*at),
        }
    }
}

//! [`Backoff`]: the delays between attempts to connect.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// A delay that doubles with each attempt and is shortened by up to a half at random, so that not
/// all clients of a server reconnect at one moment.
pub(crate) struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    /// The longest delay.
    pub(crate) const LONGEST: Duration = Duration::from_secs(2);

    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    /// Returns the delay before the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        let longest = self.0;
        self.0 = (longest * 2).min(Self::LONGEST);
        let half = longest / 2;
        // Every state hashes differently, so the hash of any value is a random number.
        half + half * (RandomState::new().hash_one(()) as u32 >> 16) / (1 << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit_with_jitter() {
        let series = || {
            let mut backoff = Backoff::new();
            std::array::from_fn::<_, 10, _>(|_| backoff.pause())
        };
        let (one, other) = (series(), series());
        assert_ne!(one, other);
        for pauses in [one, other] {
            let mut longest = Backoff::FIRST;
            for pause in pauses {
                assert!(
                    (longest / 2..=longest).contains(&pause),
                    "{pause:?} of {longest:?}"
                );
                longest = (longest * 2).min(Backoff::LONGEST);
            }
            assert_eq!(longest, Backoff::LONGEST);
        }
    }
}

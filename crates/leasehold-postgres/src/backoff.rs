//! [`Backoff`]: pauses between tries, longer and longer.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Doubled with each pause, and shortened by up to a half by chance: not all who lost one server
/// come back at one instant.
pub(crate) struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    /// No pause is longer.
    pub(crate) const LONGEST: Duration = Duration::from_secs(2);

    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    /// How long to wait before the next try.
    pub(crate) fn pause(&mut self) -> Duration {
        let longest = self.0;
        self.0 = (longest * 2).min(Self::LONGEST);
        let half = longest / 2;
        // Each state is another one, and its hash of anything a random number.
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

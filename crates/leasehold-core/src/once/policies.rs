//! The policies for missed, overlapping and failed occurrences.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// The policy for occurrences that fell due while nobody ran them, such as during an outage.
///
/// ```
/// use leasehold_core::once::Missed;
///
/// assert_eq!(Missed::default(), Missed::Latest);
/// // The last 24 of them, the oldest first.
/// let catch_up = Missed::All { limit: 24 };
/// # drop(catch_up);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Missed {
    /// Only the latest of them runs, however late. The older ones are skipped.
    #[default]
    Latest,
    /// None of them runs. An occurrence has been missed if it fell due longer ago than the grace
    /// period.
    Skip,
    /// The last `limit` of them run one after the other, the oldest first. The limit is 1 to 1 000.
    /// An occurrence that falls due during a run is not skipped, as with [`Overlap::Queue`].
    All {
        /// The number of occurrences that run at most.
        limit: u32,
    },
}

/// The policy for occurrences that fall due while an earlier one runs.
///
/// ```
/// use leasehold_core::once::Overlap;
///
/// assert_eq!(Overlap::default(), Overlap::Skip);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overlap {
    /// They are skipped when the run ends.
    #[default]
    Skip,
    /// They run afterwards, as [`Missed`] says.
    Queue,
}

/// The policy for beginning an occurrence again.
///
/// An occurrence begins at most `1 + crashes + failures` times. With both 0 it begins at most once.
///
/// ```
/// use leasehold_core::once::Retry;
///
/// let at_most_once = Retry::never();
/// assert_eq!((at_most_once.crashes, at_most_once.failures), (0, 0));
/// let patient = Retry { failures: 3, ..Retry::default() };
/// assert_eq!((patient.crashes, patient.failures), (2, 3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Retry {
    /// The number of times it is begun again after its runner crashed or lost the lock. Defaults to
    /// 2.
    pub crashes: u32,
    /// The number of times it is begun again after the work failed or took too long. Defaults to 0.
    pub failures: u32,
    /// The time from the end of a failed run to the next one. Defaults to 30 s.
    pub delay: Duration,
}

impl Retry {
    /// Returns a policy under which an occurrence begins at most once.
    #[must_use]
    pub const fn never() -> Self {
        Self {
            crashes: 0,
            failures: 0,
            delay: Duration::ZERO,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            crashes: 2,
            failures: 0,
            delay: Duration::from_secs(30),
        }
    }
}

/// All policies of one name.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    pub(crate) missed: Missed,
    pub(crate) grace: Duration,
    pub(crate) overlap: Overlap,
    pub(crate) retry: Retry,
    /// The longest run. After it, the work is dropped.
    pub(crate) at_most: Option<Duration>,
    /// The least time from one begin to the next.
    pub(crate) at_least: Duration,
    /// An occurrence that is this near is waited for.
    pub(crate) early: Duration,
    /// The number of runs that are remembered.
    pub(crate) history: usize,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            missed: Missed::default(),
            // Replicas look within seconds of the instant. A minute also covers a deployment.
            grace: Duration::from_secs(60),
            overlap: Overlap::default(),
            retry: Retry::default(),
            at_most: None,
            at_least: Duration::ZERO,
            early: Duration::from_secs(10),
            history: 16,
        }
    }
}

impl Policies {
    /// The most runs that are remembered.
    pub(crate) const MAX_HISTORY: usize = 100;
    /// The most missed occurrences that are run. Each step back in a schedule takes microseconds.
    const MAX_MISSED: u32 = 1_000;

    /// Checks the ranges that the types do not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with the policy and its range.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |message| Err(Error::new(ErrorKind::InvalidInput, message));
        if let Missed::All { limit } = self.missed
            && !(1..=Self::MAX_MISSED).contains(&limit)
        {
            return refuse(format!(
                "at most {limit} missed occurrences cannot be run; use a limit from 1 to {}",
                Self::MAX_MISSED
            ));
        }
        if !(1..=Self::MAX_HISTORY).contains(&self.history) {
            return refuse(format!(
                "a history of {} runs is out of range; use 1 to {}",
                self.history,
                Self::MAX_HISTORY
            ));
        }
        if self.at_most.is_some_and(|limit| limit.is_zero()) {
            return refuse("work that may take no time cannot run; use a longer limit".to_owned());
        }
        Ok(())
    }

    /// Returns whether what falls due during a run is skipped. One watermark cannot skip some and
    /// keep others, so that [`Missed::All`] skips none.
    pub(crate) fn skips_overlap(&self) -> bool {
        self.overlap == Overlap::Skip && !matches!(self.missed, Missed::All { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_out_of_range_are_refused_with_the_range() {
        let with = |change: fn(&mut Policies)| {
            let mut policies = Policies::default();
            change(&mut policies);
            policies.validate()
        };
        assert!(with(|_| ()).is_ok());
        assert!(with(|policies| policies.missed = Missed::All { limit: 1_000 }).is_ok());
        for (refused, range) in [
            (
                with(|policies| policies.missed = Missed::All { limit: 0 }),
                "1 to 1000",
            ),
            (
                with(|policies| policies.missed = Missed::All { limit: 1_001 }),
                "1 to 1000",
            ),
            (with(|policies| policies.history = 0), "1 to 100"),
            (with(|policies| policies.history = 101), "1 to 100"),
            (
                with(|policies| policies.at_most = Some(Duration::ZERO)),
                "longer",
            ),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(range), "{error}");
        }
    }
}

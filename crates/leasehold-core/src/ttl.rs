//! [`Ttl`]: how long a grant lasts unless it is renewed.

use std::{fmt, num::NonZeroU64, time::Duration};

use crate::error::{Error, ErrorKind};

/// The time to live of a lease: a grant lasts this long unless it is renewed.
///
/// It is a number of whole milliseconds, from 1 ms to 366 days. Methods that set a TTL accept a
/// [`Duration`]. Nothing is rounded: a duration that is zero, too long, or not whole milliseconds
/// is an error. The [`Capabilities`](crate::Capabilities) of a backend state its own range, which
/// is checked before a request is sent.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::Ttl;
///
/// assert_eq!(Ttl::from_secs(30)?, Ttl::DEFAULT);
/// assert!(Ttl::new(Duration::from_micros(1_500)).is_err());
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ttl(NonZeroU64);

const MAX_MILLIS: u64 = 366 * 24 * 60 * 60 * 1000;

impl Ttl {
    /// The shortest TTL: 1 ms.
    pub const MIN: Self = Self(NonZeroU64::MIN);
    /// The longest TTL: a leap year. A longer one is most likely a mistake in units.
    pub const MAX: Self = Self(NonZeroU64::new(MAX_MILLIS).unwrap());
    /// The default TTL: 30 s. It is long enough for a restart of a server and for a fail-over. A
    /// crashed holder blocks its waiters for this time.
    pub const DEFAULT: Self = Self(NonZeroU64::new(30_000).unwrap());

    /// Parses a duration.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is zero, above [`Ttl::MAX`], or not whole milliseconds.
    pub fn new(ttl: Duration) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a TTL of {ttl:?} {why}; give whole milliseconds from 1 ms to 366 days"),
            ))
        };
        if ttl.is_zero() {
            return refuse("is zero");
        }
        if !ttl.subsec_nanos().is_multiple_of(1_000_000) {
            return refuse("is not whole milliseconds");
        }
        match u64::try_from(ttl.as_millis())
            .ok()
            .and_then(NonZeroU64::new)
        {
            Some(millis) if millis.get() <= MAX_MILLIS => Ok(Self(millis)),
            _ => refuse("is too long"),
        }
    }

    /// Returns a TTL of whole seconds.
    ///
    /// # Errors
    /// As [`Ttl::new`].
    pub fn from_secs(secs: u64) -> Result<Self, Error> {
        Self::new(Duration::from_secs(secs))
    }

    /// Returns a TTL of milliseconds.
    ///
    /// # Errors
    /// As [`Ttl::new`].
    pub fn from_millis(millis: u64) -> Result<Self, Error> {
        Self::new(Duration::from_millis(millis))
    }

    /// Returns the number of milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0.get()
    }

    /// As a duration.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0.get())
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<Duration> for Ttl {
    type Error = Error;

    fn try_from(ttl: Duration) -> Result<Self, Error> {
        Self::new(ttl)
    }
}

impl From<Ttl> for Duration {
    fn from(ttl: Ttl) -> Self {
        ttl.as_duration()
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_duration())
    }
}

impl fmt::Debug for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ttl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_rounded() {
        for refused in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_micros(999),
            Duration::from_micros(1_001),
            Duration::from_secs(u64::MAX),
            Duration::MAX,
            Duration::from_millis(MAX_MILLIS + 1),
        ] {
            let error = Ttl::new(refused).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(
                error.to_string().contains(&format!("{refused:?}")),
                "{error}"
            );
        }
        for taken in [1, 999, 30_000, MAX_MILLIS] {
            assert_eq!(Ttl::from_millis(taken).unwrap().as_millis(), taken);
        }
    }
}

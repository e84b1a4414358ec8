//! [`Occurrence`]: identifies work that runs once.

use std::{fmt, sync::Arc, time::SystemTime};

use crate::{
    error::{Error, ErrorKind, Result},
    once::unix_millis::UnixMillis,
    text::Escaped,
};

/// The identity of work that runs once: a scheduled instant, or a name.
///
/// The instant is the one for which the work was scheduled, not the one at which it runs. All
/// replicas must give the same one: two replicas whose clocks differ would otherwise run it twice.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use leasehold_core::once::Occurrence;
///
/// let midnight = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
/// assert_eq!(Occurrence::from(midnight), Occurrence::At(midnight));
/// assert_eq!(Occurrence::from("invoice-2031-04"), Occurrence::Named("invoice-2031-04".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Occurrence {
    /// A scheduled instant, in whole milliseconds, from 1970 to 9999. If an instant is decided, all
    /// earlier ones are decided too.
    At(SystemTime),
    /// A name of 1 to 128 bytes. It counts as decided while the history has it.
    Named(String),
}

impl From<SystemTime> for Occurrence {
    fn from(at: SystemTime) -> Self {
        Self::At(at)
    }
}

impl From<&str> for Occurrence {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

impl From<String> for Occurrence {
    fn from(name: String) -> Self {
        Self::Named(name)
    }
}

/// The maximum length of a name in bytes.
const MAX_NAME: usize = 128;

/// A valid occurrence, as the record has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OccurrenceId {
    At(UnixMillis),
    Named(Arc<str>),
}

impl OccurrenceId {
    /// Returns the instant, unless the occurrence has a name.
    pub(crate) fn instant(&self) -> Option<UnixMillis> {
        match self {
            Self::At(at) => Some(*at),
            Self::Named(_) => None,
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the name of an occurrence has {} bytes; use 1 to {MAX_NAME} bytes",
                    name.len()
                ),
            ));
        }
        Ok(Self::Named(name.into()))
    }
}

impl TryFrom<Occurrence> for OccurrenceId {
    type Error = Error;

    fn try_from(occurrence: Occurrence) -> Result<Self> {
        let at = match occurrence {
            Occurrence::Named(name) => return Self::named(&name),
            Occurrence::At(at) => at,
        };
        let instant = UnixMillis::of(at);
        if instant.time() != at {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the occurrence at {at:?} is not in whole milliseconds from 1970 to 9999; give the scheduled instant, not the present time"
                ),
            ));
        }
        Ok(Self::At(instant))
    }
}

impl From<&OccurrenceId> for Occurrence {
    fn from(id: &OccurrenceId) -> Self {
        match id {
            OccurrenceId::At(at) => Self::At(at.time()),
            OccurrenceId::Named(name) => Self::Named(name.to_string()),
        }
    }
}

impl fmt::Display for OccurrenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at) => write!(f, "{} ms after 1970", at.get()),
            Self::Named(name) => write!(f, "`{}`", Escaped(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn invalid_occurrences_are_refused_with_the_remedy() {
        let epoch = SystemTime::UNIX_EPOCH;
        for (occurrence, remedy) in [
            (Occurrence::from(""), "1 to 128 bytes"),
            (Occurrence::from("x".repeat(129)), "1 to 128 bytes"),
            (
                Occurrence::from(epoch + Duration::from_micros(1)),
                "whole milliseconds",
            ),
            (
                Occurrence::from(epoch - Duration::from_secs(1)),
                "from 1970",
            ),
        ] {
            let error = OccurrenceId::try_from(occurrence).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }

    #[test]
    fn valid_occurrences_are_kept_exactly() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_381_600_123);
        for occurrence in [Occurrence::At(at), Occurrence::from("x".repeat(128))] {
            let id = OccurrenceId::try_from(occurrence.clone()).unwrap();
            assert_eq!(Occurrence::from(&id), occurrence);
        }
    }
}

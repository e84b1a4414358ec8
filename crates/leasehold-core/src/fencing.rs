//! [`FencingToken`]: what lets a resource refuse a holder that has been overtaken.

use std::{fmt, str::FromStr};

use crate::error::{Error, ErrorKind};

/// A number that only grows: every exclusive grant of a key has a larger one than every earlier
/// grant of that key.
///
/// A shared grant's token is above every earlier exclusive grant's and below every later one's;
/// among themselves readers' tokens have no order. Permits have none. How far the promise reaches
/// (a server that forgets, a fail-over) is the backend's [`Fencing`](crate::Fencing).
///
/// # At the resource
/// A lock alone cannot stop a holder that was paused between its check and its write. The resource
/// can: it keeps the largest token of any *exclusive* write and refuses writes and reads with a
/// smaller one. (M. Kleppmann, *How to do distributed locking*, 2016.) When a program moves to
/// another backend or restores a backup, tokens may fall: keep `(epoch, token)` there and raise the
/// epoch yourself.
///
/// # Range
/// Every backend of Leasehold grants tokens that fit an `i64`, so that a signed column of a
/// database holds them; see [`as_i64`](Self::as_i64). On Redis and Redlock they stay below 2^53,
/// because scripts compute with them.
///
/// ```
/// use leasehold_core::FencingToken;
///
/// let token = FencingToken::new(41);
/// assert_eq!((token.get(), token.as_i64()), (41, Some(41)));
/// assert!(token < FencingToken::new(42));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FencingToken(u64);

impl FencingToken {
    /// A token of this value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the number as a database stores it, or `None` if it is above `i64::MAX`, which no
    /// backend of Leasehold grants.
    #[must_use]
    pub const fn as_i64(self) -> Option<i64> {
        if self.0 <= i64::MAX as u64 {
            Some(self.0 as i64)
        } else {
            None
        }
    }
}

impl FromStr for FencingToken {
    type Err = Error;

    fn from_str(token: &str) -> Result<Self, Error> {
        token.parse().map(Self).map_err(|source| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{}` is no fencing token: a decimal number below 2^64 is",
                    token.escape_debug()
                ),
            )
            .with_source(source)
        })
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FencingToken({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_above_the_signed_range_has_no_signed_form() {
        assert_eq!(FencingToken::new(i64::MAX as u64).as_i64(), Some(i64::MAX));
        assert_eq!(FencingToken::new(i64::MAX as u64 + 1).as_i64(), None);
    }
}

//! [`FencingToken`]: lets a resource reject a holder that has lost its lock.

use std::{fmt, str::FromStr};

use crate::error::{Error, ErrorKind};

/// A number that grows with each exclusive grant of a key. The token of an exclusive grant is
/// larger than that of every earlier grant of the key.
///
/// The token of a shared grant is larger than those of all earlier exclusive grants and smaller
/// than those of all later ones. The tokens of concurrent readers have no order. Permits have no
/// token. [`Fencing`](crate::Fencing) says whether a backend keeps this promise if the server loses
/// data or fails over.
///
/// # Using a token
/// A lock alone cannot stop a holder that was paused between its check and its write. The resource
/// can: it stores the largest token of any *exclusive* write and rejects writes and reads with a
/// smaller one (M. Kleppmann, *How to do distributed locking*, 2016). If a program moves to another
/// backend or restores a backup, tokens may fall. Store `(epoch, token)` at the resource in that
/// case, and raise the epoch yourself.
///
/// # Range
/// All backends of Leasehold grant tokens that fit an `i64`, so that a signed database column can
/// store them; see [`as_i64`](Self::as_i64). On Redis and Redlock they stay below 2^53, because Lua
/// scripts compute with them.
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
    /// Creates a token with this value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// Returns the value.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the value as a signed number, or `None` if it is above `i64::MAX`. No backend of
    /// Leasehold grants such a token.
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
        // A number in Rust may have a sign.
        if token.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(value) = token.parse()
        {
            return Ok(Self(value));
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "`{}` is not a fencing token; write a decimal number below 2^64",
                token.escape_debug()
            ),
        ))
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

    #[test]
    fn text_that_is_not_only_digits_is_no_token() {
        assert_eq!("42".parse::<FencingToken>().unwrap(), FencingToken::new(42));
        for text in ["", "+42", "-1", "4 2", "0x2a", "18446744073709551616"] {
            let error = text.parse::<FencingToken>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}

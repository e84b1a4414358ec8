//! [`Mode`]: how a key is held.

use std::{fmt, num::NonZeroU32};

/// How a key is asked for and held.
///
/// Exclusive and shared holders of one key exclude each other as in a read-write lock, and no
/// reader that comes later overtakes a writer that waits. Permits of a key are a namespace of their
/// own: a semaphore and a mutex of the same name do not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Mode {
    /// One holder.
    Exclusive,
    /// Any number of holders, none of them exclusive.
    Shared,
    /// At most `of` holders. All who use one name must say the same `of`.
    Permit {
        /// How many may hold at a time.
        of: NonZeroU32,
    },
}

impl Mode {
    /// Whether this is [`Mode::Permit`].
    #[must_use]
    pub fn is_permit(self) -> bool {
        matches!(self, Self::Permit { .. })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => f.write_str("exclusive"),
            Self::Shared => f.write_str("shared"),
            Self::Permit { of } => write!(f, "permit of {of}"),
        }
    }
}

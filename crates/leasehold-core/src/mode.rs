//! [`Mode`]: the mode in which a key is held.

use std::{fmt, num::NonZeroU32};

/// The mode in which a key is requested and held.
///
/// Exclusive and shared holders of one key exclude each other as in a read-write lock. A reader
/// that arrives later does not overtake a waiting writer. The permits of a key are a separate
/// namespace: a semaphore and a mutex of the same name are independent.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Mode;
///
/// let guard = client.rwlock("price list").read().await?;
/// assert_eq!(guard.mode(), Mode::Shared);
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Mode {
    /// One holder.
    Exclusive,
    /// Any number of holders, and no exclusive holder.
    Shared,
    /// At most `of` holders. All users of one name must use the same `of`.
    Permit {
        /// The maximum number of holders.
        of: NonZeroU32,
    },
}

impl Mode {
    /// Returns whether this is [`Mode::Permit`].
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

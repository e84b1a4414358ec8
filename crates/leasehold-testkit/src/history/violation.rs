//! [`Violation`]: a broken guarantee.

use std::fmt;

/// A violation of a guarantee.
///
/// ```
/// use leasehold_testkit::history::Violation;
///
/// let violation = Violation::StaleAccess { seen: 5, taken: 4 };
/// assert_eq!(violation.to_string(), "the register accepted token 4 after 5");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Mutual exclusion: two processes held one lock at the same time.
    Overlap {
        /// The name of the lock.
        key: String,
        /// The earlier holder: its process and token.
        first: (String, Option<u64>),
        /// The later holder: its process and token.
        second: (String, Option<u64>),
        /// The time for which both held the lock, in nanoseconds.
        for_ns: u64,
    },
    /// Token order: a grant had no token.
    NoToken {
        /// The process that was granted the lock.
        proc: String,
    },
    /// Token order: two grants of one lock had the same token.
    RepeatedToken {
        /// The name of the lock.
        key: String,
        /// The token.
        token: u64,
    },
    /// Token order: a later grant had a smaller token.
    FallenToken {
        /// The name of the lock.
        key: String,
        /// The token of the earlier grant.
        earlier: u64,
        /// The token of the later grant.
        later: u64,
    },
    /// Fenced writes: the register accepted a token after a larger one.
    StaleAccess {
        /// The larger token.
        seen: u64,
        /// The smaller token, which came later.
        taken: u64,
    },
    /// Fenced writes: a write was not based on the previous one.
    LostUpdate {
        /// The process that wrote.
        proc: String,
        /// The value that the process had read.
        read: u64,
        /// The value that the write replaced.
        was: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap {
                key,
                first,
                second,
                for_ns,
            } => {
                write!(
                    f,
                    "{first:?} and {second:?} both held `{key}` for {} µs",
                    for_ns / 1000
                )
            }
            Self::NoToken { proc } => write!(f, "{proc} was granted a lock without a token"),
            Self::RepeatedToken { key, token } => {
                write!(f, "two grants of `{key}` had the token {token}")
            }
            Self::FallenToken {
                key,
                earlier,
                later,
            } => {
                write!(
                    f,
                    "a grant of `{key}` with token {earlier} was followed by one with {later}"
                )
            }
            Self::StaleAccess { seen, taken } => {
                write!(f, "the register accepted token {taken} after {seen}")
            }
            Self::LostUpdate { proc, read, was } => {
                write!(
                    f,
                    "{proc} had read {read} and overwrote {was}, so an update is lost"
                )
            }
        }
    }
}

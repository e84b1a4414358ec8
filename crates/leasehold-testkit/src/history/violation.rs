//! [`Violation`]: a broken guarantee.

use std::fmt;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// C1: two believed in one lock at a time.
    Overlap {
        /// Which lock.
        key: String,
        /// The one that was there first: process and token.
        first: (String, Option<u64>),
        /// The other.
        second: (String, Option<u64>),
        /// For how long both did.
        for_ns: u64,
    },
    /// C2: an exclusive grant without a token.
    NoToken {
        /// Which process.
        proc: String,
    },
    /// C2: two grants of one lock had the same token.
    RepeatedToken {
        /// Which lock.
        key: String,
        /// The token.
        token: u64,
    },
    /// C2: a later grant had a smaller token.
    FallenToken {
        /// Which lock.
        key: String,
        /// The earlier grant's.
        earlier: u64,
        /// The later grant's.
        later: u64,
    },
    /// C3: the register took a token after a larger one.
    StaleAccess {
        /// The larger.
        seen: u64,
        /// The smaller.
        taken: u64,
    },
    /// C3: a write did not build on the one before it.
    LostUpdate {
        /// Who wrote.
        proc: String,
        /// The value that it had read.
        read: u64,
        /// The value that was there.
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
                    "{first:?} and {second:?} both believed in `{key}` for {} µs",
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
                    "after a grant of `{key}` with token {earlier} came one with {later}"
                )
            }
            Self::StaleAccess { seen, taken } => {
                write!(f, "the register took token {taken} after {seen}")
            }
            Self::LostUpdate { proc, read, was } => {
                write!(
                    f,
                    "{proc} had read {read} and overwrote {was}: an update is lost"
                )
            }
        }
    }
}

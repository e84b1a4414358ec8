//! What the acquire scripts answer.

use leasehold_core::{FencingToken, Mode, Result};
use redis::Value;

use crate::error;

/// Why a script refused, as it numbers the reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is held.
    Held,
    /// It is free, and offered to a waiter that came earlier.
    Offered,
    /// Readers hold it, a writer waits that came earlier, and the request is a reader's.
    Writers,
}

/// What an acquire script answers.
pub(crate) enum Answer {
    Granted(Option<FencingToken>),
    /// And the milliseconds until trying again makes sense; negative if the holder has no end.
    Refused(Refusal, i64),
    /// Refused, and it was not asked when to try again.
    RefusedBriefly,
    Mismatch {
        theirs: i64,
    },
}

impl Answer {
    pub(crate) fn read(answer: &Value, mode: Mode) -> Result<Self> {
        match answer {
            Value::BulkString(token) => {
                let token = std::str::from_utf8(token).ok().and_then(|token| token.parse().ok());
                token.map(|token| Self::Granted(Some(token))).ok_or_else(|| error::protocol("acquire"))
            }
            Value::Nil if mode == Mode::Exclusive => Ok(Self::RefusedBriefly),
            // Of the plain commands.
            Value::Int(token) if mode == Mode::Exclusive => {
                Ok(Self::Granted(Some(FencingToken::new(token.unsigned_abs()))))
            }
            Value::Int(1) if mode.is_permit() => Ok(Self::Granted(None)),
            Value::Array(parts) => match parts.as_slice() {
                [Value::Int(0), Value::Int(left)] => Ok(Self::Refused(Refusal::Held, *left)),
                [Value::Int(1), Value::Int(left)] => Ok(Self::Refused(Refusal::Offered, *left)),
                [Value::Int(2), Value::Int(left)] => Ok(Self::Refused(Refusal::Writers, *left)),
                [Value::Int(3), Value::Int(theirs)] => Ok(Self::Mismatch { theirs: *theirs }),
                _ => Err(error::protocol("acquire")),
            },
            _ => Err(error::protocol("acquire")),
        }
    }
}

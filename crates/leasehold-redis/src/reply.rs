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

/// What an attempt was refused for. The same again means that nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerInfo {
    /// The value of who holds it; of permits, of the one that ends last.
    pub(crate) holder: Vec<u8>,
    /// The server's time in ms at which that ends; negative if it has no end. Of permits, the sum
    /// of those times.
    pub(crate) ends: i64,
}

/// What an acquire script answers.
pub(crate) enum Answer {
    Granted(Option<FencingToken>),
    /// And the milliseconds until trying again makes sense; negative if the holder has no end.
    Refused(Refusal, i64, ServerInfo),
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
                let token = std::str::from_utf8(token)
                    .ok()
                    .and_then(|token| token.parse().ok());
                token
                    .map(|token| Self::Granted(Some(token)))
                    .ok_or_else(|| error::protocol("acquire"))
            }
            Value::Nil if mode == Mode::Exclusive => Ok(Self::RefusedBriefly),
            // Of the plain commands.
            Value::Int(token) if mode == Mode::Exclusive => {
                Ok(Self::Granted(Some(FencingToken::new(token.unsigned_abs()))))
            }
            Value::Int(1) if mode.is_permit() => Ok(Self::Granted(None)),
            Value::Array(parts) => match parts.as_slice() {
                [
                    Value::Int(why),
                    Value::Int(left),
                    Value::BulkString(holder),
                    Value::Int(ends),
                ] => {
                    let refusal = match why {
                        0 => Refusal::Held,
                        1 => Refusal::Offered,
                        2 => Refusal::Writers,
                        _ => return Err(error::protocol("acquire")),
                    };
                    Ok(Self::Refused(
                        refusal,
                        *left,
                        ServerInfo {
                            holder: holder.clone(),
                            ends: *ends,
                        },
                    ))
                }
                [Value::Int(3), Value::Int(theirs)] => Ok(Self::Mismatch { theirs: *theirs }),
                _ => Err(error::protocol("acquire")),
            },
            _ => Err(error::protocol("acquire")),
        }
    }
}

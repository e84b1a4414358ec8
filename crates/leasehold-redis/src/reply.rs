//! [`AcquireReply`]: the reply of the acquire scripts.

use leasehold_core::{FencingToken, Mode, Result};
use redis::Value;

use crate::error;

/// The reason of a refusal, as the scripts number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lock is held.
    Held,
    /// The lock is free and offered to an earlier waiter.
    Offered,
    /// Readers hold the lock, and this reader must not overtake a waiting writer.
    Writers,
}

/// The holder because of which an attempt was refused. Finding the same holder again means that
/// nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObservedHolder {
    /// The holder's lock value. For permits, that of the permit that expires last.
    pub(crate) holder: Vec<u8>,
    /// The server's time at which the lock expires, in milliseconds; negative if it never does. For
    /// permits, the sum of these times.
    pub(crate) ends: i64,
}

/// The reply of an acquire script.
pub(crate) enum AcquireReply {
    Granted(Option<FencingToken>),
    /// Refused, with the time in milliseconds after which to retry; negative if the lock has no
    /// expiry.
    Refused(Refusal, i64, ObservedHolder),
    /// Refused, without the time at which to retry.
    RefusedNoInfo,
    Mismatch {
        theirs: i64,
    },
}

impl AcquireReply {
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
            Value::Nil if mode == Mode::Exclusive => Ok(Self::RefusedNoInfo),
            // The reply of the plain commands.
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
                        ObservedHolder {
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

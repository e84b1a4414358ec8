//! The commands of an acquisition, a release and a renewal, and the replies to them.
//!
//! An acquisition has two encodings. The script does everything in one step, and raises the token
//! counter above the server's clock. Two plain commands in one write, `SET NX PX` and `INCRBY`,
//! cost the server less than half of that. They are used while the counter is known to be above the
//! clock: after a script on *this* connection, because a server that returns with older data has
//! broken it.
//!
//! Measured: the CPU time of redis-server (7.0, main thread) for one acquisition and one release,
//! 64 in flight, is 3.50 µs with the plain commands and 9.30 µs with the script (3.48–3.96 against
//! 9.25–9.44 in five interleaved rounds of raw commands). `SET NX` alone in a script, without a
//! token, makes it 5.11 µs. With the script alone, pairs per second of 16, 64 and 256 tasks are
//! 0.76, 0.66 and 0.69 of those with both (medians of five interleaved rounds, 0.62–0.86). The
//! short script for the acquisitions that yield is worth less: without it they are 0.94, 0.92 and
//! 0.89 of those with it, and 1.37 and 1.21 times those of the bare driver with 64 and 256 tasks
//! instead of 1.64 and 1.36. It keeps a distance to the required 1.2 times.

use redis::{Cmd, Pipeline, RedisError, Value};

use leasehold_core::{FencingToken, Mode, Result, backend::Request, text::parse_exact};

use crate::{
    connection::{Connection, by_hash},
    error::ERRORS,
    keys::{Keys, Kind, LockValue, Parts, Slot},
    scripts::{self, Script},
    waiters::ObservedHolder,
};

/// The smallest token. Tokens start as microseconds since 1970, so a smaller value shows that the
/// counter was lost after it was raised.
const LEAST_TOKEN: i64 = 1_000_000_000_000_000;
/// The first token that a script cannot distinguish from its neighbours.
pub(crate) const TOKEN_LIMIT: u64 = 1 << 53;

/// An operation on an exclusive lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Acquire {
        /// An earlier attempt of this acquisition has registered it as a waiter.
        registered: bool,
    },
    Release,
    Renew,
}

impl Operation {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Acquire { .. } => "acquire",
            Self::Release => "release",
            Self::Renew => "renew",
        }
    }

    pub(crate) fn script(self) -> &'static Script {
        match self {
            Self::Acquire { .. } => &scripts::ACQUIRE,
            Self::Release => &scripts::RELEASE,
            Self::Renew => &scripts::RENEW,
        }
    }

    /// Adds the script's arguments.
    pub(crate) fn arguments(self, cmd: &mut Cmd, prefix: &[u8], request: &Request) {
        match self {
            Self::Acquire { registered } => {
                let keys = Keys::new(prefix, request.key());
                // The run of the server matters to readers only.
                acquire_arguments(cmd, &keys, request, &options(request, registered), "");
            }
            Self::Release => release_arguments(cmd, prefix, request),
            Self::Renew => renew_arguments(cmd, prefix, request),
        }
    }
}

/// The encoding of an operation as commands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Encoding {
    /// As two plain commands.
    Pipeline(Slot),
    /// As a short script that looks for waiters first.
    YieldingScript(Slot),
    /// As a script, which raises the counter of this slot if it is an acquisition that is granted.
    Script(Option<Slot>),
}

impl Encoding {
    /// Returns the best encoding on this connection.
    pub(crate) fn of(
        operation: Operation,
        conn: &Connection,
        prefix: &[u8],
        request: &Request,
    ) -> Self {
        let Operation::Acquire { registered } = operation else {
            return Self::Script(None);
        };
        let slot = Keys::new(prefix, request.key()).slot();
        // Only the script can remove this acquisition from the list of waiters.
        if registered || !conn.is_seeded(slot) {
            Self::Script(Some(slot))
        } else if request.waiting().yields {
            Self::YieldingScript(slot)
        } else {
            Self::Pipeline(slot)
        }
    }

    /// Returns the script of an operation with this encoding.
    pub(crate) fn script(self, operation: Operation) -> &'static Script {
        if let Self::YieldingScript(_) = self {
            &scripts::ACQUIRE_YIELDING
        } else {
            operation.script()
        }
    }

    /// Adds the script's arguments.
    pub(crate) fn arguments(
        self,
        cmd: &mut Cmd,
        operation: Operation,
        prefix: &[u8],
        request: &Request,
    ) {
        if let Self::YieldingScript(slot) = self {
            let keys = Keys::new(prefix, request.key());
            add_keys(
                cmd,
                [keys.lock(), keys.token_in(slot), keys.derived(Kind::Order)],
            );
            cmd.arg(LockValue::of(request).parts())
                .arg(request.ttl().as_millis());
        } else {
            operation.arguments(cmd, prefix, request);
        }
    }

    /// Adds the commands.
    pub(crate) fn write(
        self,
        pipeline: &mut Pipeline,
        operation: Operation,
        prefix: &[u8],
        request: &Request,
    ) {
        match self {
            Self::Pipeline(slot) => {
                let keys = Keys::new(prefix, request.key());
                let mut set = Cmd::with_capacity(6, 160);
                set.arg("SET")
                    .arg(keys.lock())
                    .arg(LockValue::of(request).parts());
                set.arg("NX").arg("PX").arg(request.ttl().as_millis());
                let mut draw = Cmd::with_capacity(3, 64);
                draw.arg("INCRBY").arg(keys.token_in(slot)).arg(2);
                pipeline.add_command(set).add_command(draw);
            }
            Self::YieldingScript(_) | Self::Script(_) => {
                let arguments = |cmd: &mut Cmd| self.arguments(cmd, operation, prefix, request);
                pipeline.add_command(by_hash(self.script(operation), &arguments));
            }
        }
    }

    /// Takes this operation's answers from the iterator and returns its result: the script's
    /// answer, or that of [`plain`].
    pub(crate) fn read(
        self,
        conn: &Connection,
        answers: &mut impl Iterator<Item = Value>,
    ) -> Result<Value, RedisError> {
        // There is one answer for each command, or the whole pipeline has failed.
        let mut next = || answers.next().unwrap_or(Value::Nil);
        match self {
            Self::Pipeline(slot) => {
                let (set, drawn) = (next(), next());
                plain(conn, slot, set, &drawn)
            }
            Self::YieldingScript(slot) => match next() {
                Value::Nil => Ok(Value::Nil),
                token @ (Value::Int(_) | Value::Okay) => plain(conn, slot, Value::Okay, &token),
                other => other.extract_error(),
            },
            Self::Script(slot) => {
                let answer = next().extract_error();
                if let (Some(slot), Ok(Value::BulkString(_))) = (slot, &answer) {
                    conn.mark_seeded(slot);
                }
                answer
            }
        }
    }
}

/// Returns the result of the plain commands: the token as a number; nil if refused; `Okay` if
/// granted without a token, because the counter was lost or damaged since this connection raised
/// it.
fn plain(conn: &Connection, slot: Slot, set: Value, drawn: &Value) -> Result<Value, RedisError> {
    let token = match drawn {
        &Value::Int(token) if token >= LEAST_TOKEN && token.unsigned_abs() < TOKEN_LIMIT => {
            Some(token)
        }
        _ => {
            conn.clear_seeded(slot);
            None
        }
    };
    match (set.extract_error()?, token) {
        (Value::Okay, Some(token)) => Ok(Value::Int(token)),
        (answer, _) => Ok(answer),
    }
}

/// Adds the keys of a script: every key that it touches, in the order in which it names them.
///
/// A script that touches other keys fails on servers that forbid it, and while its slot moves to
/// another node of a cluster.
pub(crate) fn add_keys<'a, const N: usize>(cmd: &'a mut Cmd, keys: [Parts<'_>; N]) -> &'a mut Cmd {
    cmd.arg(N).arg(&keys[..])
}

/// Returns the options of an acquisition, which `scripts/shared/acquisition.lua` describes.
pub(crate) fn options(request: &Request, registered: bool) -> Vec<&'static str> {
    [
        (request.waiting().keeps_waiting, "wait"),
        (request.waiting().yields, "yield"),
        (registered, "registered"),
        (registered && request.waiting().in_order, "in_order"),
    ]
    .into_iter()
    .filter_map(|(given, word)| given.then_some(word))
    .collect()
}

pub(crate) fn acquire_script(mode: Mode) -> &'static Script {
    match mode {
        Mode::Shared => &scripts::ACQUIRE_SHARED,
        Mode::Permit { .. } => &scripts::ACQUIRE_PERMIT,
        _ => &scripts::ACQUIRE,
    }
}

/// Adds the arguments of the acquire script. `run` is the run of the server.
pub(crate) fn acquire_arguments(
    cmd: &mut Cmd,
    keys: &Keys<'_>,
    request: &Request,
    options: &[&str],
    run: &str,
) {
    match request.mode() {
        Mode::Permit { .. } => add_keys(
            cmd,
            [Kind::Permits, Kind::Queue].map(|kind| keys.derived(kind)),
        ),
        Mode::Shared => add_keys(
            cmd,
            [
                keys.lock(),
                keys.token(),
                keys.derived(Kind::Readers),
                keys.derived(Kind::Order),
                keys.derived(Kind::Writers),
                keys.derived(Kind::Waiters),
            ],
        ),
        _ => add_keys(
            cmd,
            [
                keys.lock(),
                keys.token(),
                keys.derived(Kind::Order),
                keys.derived(Kind::Writers),
                keys.derived(Kind::Waiters),
            ],
        ),
    };
    cmd.arg(LockValue::of(request).parts())
        .arg(request.ttl().as_millis());
    match request.mode() {
        Mode::Permit { of } => {
            cmd.arg(of.get());
        }
        Mode::Shared => {
            cmd.arg(run);
        }
        _ => {}
    }
    cmd.arg(options);
}

/// Adds the keys of the scripts that release and renew.
pub(crate) fn add_holder_keys<'a>(cmd: &'a mut Cmd, keys: &Keys<'_>, mode: Mode) -> &'a mut Cmd {
    match mode {
        Mode::Permit { .. } => add_keys(cmd, [keys.derived(Kind::Permits)]),
        Mode::Shared => add_keys(cmd, [keys.lock(), keys.derived(Kind::Readers)]),
        _ => add_keys(cmd, [keys.lock()]),
    }
}

pub(crate) fn release_script(mode: Mode) -> &'static Script {
    match mode {
        Mode::Shared => &scripts::RELEASE_SHARED,
        Mode::Permit { .. } => &scripts::RELEASE_PERMIT,
        _ => &scripts::RELEASE,
    }
}

pub(crate) fn release_arguments(cmd: &mut Cmd, prefix: &[u8], request: &Request) {
    let keys = Keys::new(prefix, request.key());
    add_holder_keys(cmd, &keys, request.mode()).arg(LockValue::of(request).parts());
}

pub(crate) fn renew_script(mode: Mode) -> &'static Script {
    match mode {
        Mode::Shared => &scripts::RENEW_SHARED,
        Mode::Permit { .. } => &scripts::RENEW_PERMIT,
        _ => &scripts::RENEW,
    }
}

pub(crate) fn renew_arguments(cmd: &mut Cmd, prefix: &[u8], request: &Request) {
    let keys = Keys::new(prefix, request.key());
    add_holder_keys(cmd, &keys, request.mode())
        .arg(LockValue::of(request).parts())
        .arg(request.ttl().as_millis());
}

/// The reason of a refusal, as `scripts/shared/acquisition.lua` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lock is held.
    Held,
    /// The lock is free and offered to an earlier waiter.
    Offered,
    /// Readers hold the lock, and this reader must not overtake a waiting writer.
    Writers,
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
    /// Returns the reply that grants this token, or an error if no script draws it.
    fn granted(token: Option<u64>) -> Result<Self> {
        token
            .filter(|token| *token < TOKEN_LIMIT)
            .map(|token| Self::Granted(Some(FencingToken::new(token))))
            .ok_or_else(|| ERRORS.unexpected("acquire"))
    }

    pub(crate) fn read(answer: &Value, mode: Mode) -> Result<Self> {
        match answer {
            Value::BulkString(token) if !mode.is_permit() => {
                let token = std::str::from_utf8(token).ok().and_then(parse_exact);
                Self::granted(token)
            }
            Value::Nil if mode == Mode::Exclusive => Ok(Self::RefusedNoInfo),
            // The reply of the plain commands.
            Value::Int(token) if mode == Mode::Exclusive => {
                Self::granted(u64::try_from(*token).ok())
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
                        _ => return Err(ERRORS.unexpected("acquire")),
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
                _ => Err(ERRORS.unexpected("acquire")),
            },
            _ => Err(ERRORS.unexpected("acquire")),
        }
    }
}

#[cfg(test)]
mod tests {
    use leasehold_core::ErrorKind;

    use super::*;

    #[test]
    fn a_reply_that_is_no_token_of_a_script_grants_nothing() {
        let text = |token: &str| Value::BulkString(token.as_bytes().to_vec());
        for reply in [
            Value::Int(-1_700_000_000_000_001),
            Value::Int(1 << 53),
            text("+1700000000000001"),
            text("01700000000000001"),
            text("9007199254740992"),
            text(""),
        ] {
            let error = AcquireReply::read(&reply, Mode::Exclusive).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::UnexpectedResponse, "{reply:?}");
        }
        let permit = Mode::Permit {
            of: 2.try_into().unwrap(),
        };
        let error = AcquireReply::read(&text("1700000000000001"), permit)
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::UnexpectedResponse);
        for reply in [Value::Int(1_700_000_000_000_001), text("1700000000000001")] {
            let read = AcquireReply::read(&reply, Mode::Exclusive).unwrap();
            let AcquireReply::Granted(Some(token)) = read else {
                panic!("{reply:?}")
            };
            assert_eq!(token.get(), 1_700_000_000_000_001);
        }
    }
}

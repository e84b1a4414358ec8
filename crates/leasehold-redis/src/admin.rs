//! Inspection and revocation: the holders of a key, its waiters, and the forced end of a lock.
//!
//! An inspection shows no tokens. One counter serves many locks, and a lock does not contain its
//! own token, because its value is written before the token is drawn.

use std::time::Duration;

use leasehold_core::{
    HolderRef, Inspection, LockKey, Mode, Result, Revocation, RevokeOutcome, WaiterRef,
};
use redis::{Cmd, Value};

use crate::{
    commands,
    connection_manager::ConnectionManager,
    error::{self, ERRORS, SideEffect},
    keys::{Keys, Kind, ParsedValue},
    scripts,
};

/// A member of a sorted set and its expiry in ms.
type Members = Vec<(Vec<u8>, f64)>;
/// The reply of the script: now, value, PTTL, readers, writers, waiters, permits, queue.
type Answer = (
    f64,
    Option<Vec<u8>>,
    i64,
    Members,
    Members,
    Members,
    Members,
    Members,
);

/// Returns the holders of `key` and its waiters.
pub(crate) async fn inspect(manager: &ConnectionManager, key: &LockKey) -> Result<Inspection> {
    Keys::check(&manager.config.prefix, key).map_err(|error| error.with_operation("inspect"))?;
    let keys = Keys::new(&manager.config.prefix, key);
    let answer = manager
        .run(&scripts::INSPECT, "inspect", SideEffect::None, |cmd| {
            arguments(cmd, &keys);
        })
        .await?;
    read(key, answer)
}

/// Parses the reply of the script of [`inspect`].
pub(crate) fn read(key: &LockKey, answer: Value) -> Result<Inspection> {
    let answer = parse(answer).ok_or_else(|| ERRORS.unexpected("inspect"))?;
    let (now, value, left, readers, writers, waiters, permits, queue) = answer;

    let mut holders = Vec::new();
    let ends_in = |score: f64| Some(Duration::from_millis((score - now).max(0.0) as u64));
    match value {
        Some(value) if value.starts_with(b"shared:") => {
            for (member, score) in readers {
                let mut reader = holder_ref(key, member, |_| Some(Mode::Shared));
                reader.expires_in = ends_in(score);
                holders.push(reader);
            }
        }
        Some(value) => {
            let mut writer = holder_ref(key, value, |seen| seen.owner.and(Some(Mode::Exclusive)));
            writer.expires_in = u64::try_from(left).ok().map(Duration::from_millis);
            holders.push(writer);
        }
        None => {}
    }
    for (member, score) in permits {
        let mut permit = holder_ref(key, member, |seen| permit_mode(seen.of));
        permit.expires_in = ends_in(score);
        holders.push(permit);
    }

    // The sooner a registration expires, the earlier it was last renewed; the order of arrival is
    // not kept.
    let waiters = [
        (writers, Some(Mode::Exclusive)),
        (waiters, Some(Mode::Shared)),
        (queue, None),
    ]
    .into_iter()
    .flat_map(|(members, mode)| members.into_iter().map(move |(member, _)| (member, mode)))
    .map(|(member, mode)| {
        let seen = ParsedValue::read(&member);
        WaiterRef::new(mode.or_else(|| permit_mode(seen.of)), seen.label)
    })
    .collect();
    Ok(Inspection::new(holders, waiters))
}

/// Returns the holder with this value.
fn holder_ref(
    key: &LockKey,
    value: Vec<u8>,
    mode: impl FnOnce(&ParsedValue) -> Option<Mode>,
) -> HolderRef {
    let seen = ParsedValue::read(&value);
    let mut holder = HolderRef::new(key.clone(), value);
    holder.mode = mode(&seen);
    holder.owner = seen.owner;
    holder.label = seen.label;
    holder
}

fn permit_mode(of: Option<u32>) -> Option<Mode> {
    of.and_then(|of| of.try_into().ok())
        .map(|of| Mode::Permit { of })
}

fn arguments(cmd: &mut Cmd, keys: &Keys<'_>) {
    let [readers, writers, waiters, permits, queue] = [
        Kind::Readers,
        Kind::Writers,
        Kind::Waiters,
        Kind::Permits,
        Kind::Queue,
    ]
    .map(|kind| keys.derived(kind));
    commands::add_keys(
        cmd,
        [keys.lock(), readers, writers, waiters, permits, queue],
    );
}

fn parse(answer: Value) -> Option<Answer> {
    redis::from_redis_value(answer).ok()
}

/// The reply of the scripts if the holder no longer holds the lock.
const GONE: i64 = -2;

/// Revokes the lock of `holder`. The script compares the value first, so a newer holder is never
/// affected.
pub(crate) async fn revoke(
    manager: &ConnectionManager,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    use Revocation::{Graceful, Immediate};

    Keys::check(&manager.config.prefix, &holder.key)
        .map_err(|error| error.with_operation("revoke"))?;
    let keys = Keys::new(&manager.config.prefix, &holder.key);
    // A lock of another program is exclusive.
    let mode = holder.mode.unwrap_or(Mode::Exclusive);
    let script = match (mode, revocation) {
        (_, Immediate) => commands::release_script(mode),
        (Mode::Shared | Mode::Permit { .. }, Graceful) => &scripts::REVOKE_MEMBER,
        (_, Graceful) => &scripts::REVOKE,
    };
    let revoke_arguments = |cmd: &mut Cmd, again: bool| {
        match (mode, revocation) {
            (Mode::Shared, Graceful) => commands::add_keys(cmd, [keys.derived(Kind::Readers)]),
            _ => commands::add_holder_keys(cmd, &keys, mode),
        }
        .arg(holder.id.as_slice());
        if again && revocation == Graceful {
            cmd.arg("again");
        }
    };
    let conn = manager.connection_flushed("revoke").await?;
    let answer = match manager
        .run_on(&conn, script, "revoke", SideEffect::Writes, |cmd| {
            revoke_arguments(cmd, false);
        })
        .await
    {
        Err(broken) if error::is_broken_connection(&broken) => {
            let Ok(conn) = manager.connection().await else {
                return Err(broken);
            };
            manager
                .run_on(&conn, script, "revoke", SideEffect::Writes, |cmd| {
                    revoke_arguments(cmd, true);
                })
                .await?
        }
        answer => answer?,
    };
    match (answer, revocation) {
        (Value::Int(1), Immediate) => Ok(RevokeOutcome::Freed),
        (Value::Int(0), Immediate) | (Value::Int(GONE), Graceful) => Ok(RevokeOutcome::AlreadyGone),
        // The lock of another program may have no expiry.
        (Value::Int(left), Graceful) => Ok(RevokeOutcome::FreeWithin(
            u64::try_from(left).ok().map(Duration::from_millis),
        )),
        _ => Err(ERRORS.unexpected("revoke")),
    }
}

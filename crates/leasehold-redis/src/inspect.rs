//! Who holds a key and who waits for it. Their tokens are not told: a counter serves many locks,
//! and the lock does not hold its own, as the value is written before the token is drawn.

use std::time::Duration;

use leasehold_core::{Inspection, LockKey, Mode, Result, WaiterRef};
use redis::{Cmd, Value};

use crate::{
    connection::Link,
    error::{self, Effect},
    keys::{Keys, Kind},
    scripts, value,
};

/// A member of a sorted set and its expiry in ms.
type Members = Vec<(Vec<u8>, f64)>;
/// What the script answers: now, value, PTTL, readers, writers, waiters, permits, queue.
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

pub(crate) async fn inspect(link: &Link, key: &LockKey) -> Result<Inspection> {
    Keys::check(&link.config.prefix, key).map_err(|error| error.with_operation("inspect"))?;
    let keys = Keys::new(&link.config.prefix, key);
    let answer = link
        .run(&scripts::INSPECT, "inspect", Effect::None, |cmd| {
            arguments(cmd, &keys);
        })
        .await?;
    let answer = parse(answer).ok_or_else(|| error::protocol("inspect"))?;
    let (now, value, left, readers, writers, waiters, permits, queue) = answer;

    let mut holders = Vec::new();
    let ends_in = |score: f64| Some(Duration::from_millis((score - now).max(0.0) as u64));
    match value {
        Some(value) if value.starts_with(b"shared:") => {
            for (member, score) in readers {
                let mut reader = value::shown(key, member, |_| Some(Mode::Shared));
                reader.expires_in = ends_in(score);
                holders.push(reader);
            }
        }
        Some(value) => {
            let mut writer = value::shown(key, value, |seen| seen.owner.and(Some(Mode::Exclusive)));
            writer.expires_in = u64::try_from(left).ok().map(Duration::from_millis);
            holders.push(writer);
        }
        None => {}
    }
    for (member, score) in permits {
        let mut permit = value::shown(key, member, |seen| permit_mode(seen.of));
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
        let seen = value::read(&member);
        WaiterRef::new(mode.or_else(|| permit_mode(seen.of)), seen.label)
    })
    .collect();
    Ok(Inspection::new(holders, waiters))
}

fn permit_mode(of: Option<u32>) -> Option<Mode> {
    of.and_then(|of| of.try_into().ok())
        .map(|of| Mode::Permit { of })
}

fn arguments(cmd: &mut Cmd, keys: &Keys<'_>) {
    cmd.arg(6).arg(keys.lock());
    for kind in [
        Kind::Readers,
        Kind::Writers,
        Kind::Waiters,
        Kind::Permits,
        Kind::Queue,
    ] {
        cmd.arg(keys.derived(kind));
    }
}

fn parse(answer: Value) -> Option<Answer> {
    redis::from_redis_value(answer).ok()
}

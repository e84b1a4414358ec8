//! Taking a lock from a holder that an inspection showed.

use std::time::Duration;

use leasehold_core::{Broken, HolderRef, Mode, Result};
use redis::{Cmd, Value};

use crate::{
    connection::Link,
    error::{self, Effect},
    keys::{Keys, Kind},
    scripts,
};

/// What the scripts answer if the holder holds no more.
const GONE: i64 = -2;

/// Compares the value and takes the lock in one step, so that a newer holder is never hit.
pub(crate) async fn break_lock(link: &Link, holder: &HolderRef, now: bool) -> Result<Broken> {
    Keys::check(&link.config.prefix, &holder.key).map_err(|error| error.with_operation("break"))?;
    let keys = Keys::new(&link.config.prefix, &holder.key);
    let id = holder.id.as_slice();
    let script = match (holder.mode, now) {
        (Some(Mode::Shared), true) => &scripts::RELEASE_SHARED,
        (Some(Mode::Permit { .. }), true) => &scripts::RELEASE_PERMIT,
        (_, true) => &scripts::RELEASE,
        (Some(Mode::Shared | Mode::Permit { .. }), false) => &scripts::MARK_MEMBER,
        (_, false) => &scripts::MARK,
    };
    let arguments = |cmd: &mut Cmd, again: bool| {
        match holder.mode {
            Some(Mode::Shared) if now => cmd
                .arg(1)
                .arg(keys.lock())
                .arg(id)
                .arg(keys.derived(Kind::Readers)),
            Some(Mode::Shared) => cmd.arg(1).arg(keys.derived(Kind::Readers)).arg(id),
            Some(Mode::Permit { .. }) => cmd.arg(1).arg(keys.derived(Kind::Permits)).arg(id),
            _ => cmd.arg(1).arg(keys.lock()).arg(id),
        };
        if again && !now {
            cmd.arg("again");
        }
    };
    let live = link.live_in_order("break").await?;
    let answer = match link
        .run_on(&live, script, "break", Effect::Writes, |cmd| {
            arguments(cmd, false)
        })
        .await
    {
        Err(broken) if error::broke(&broken) => {
            let Ok(live) = link.live().await else {
                return Err(broken);
            };
            link.run_on(&live, script, "break", Effect::Writes, |cmd| {
                arguments(cmd, true)
            })
            .await?
        }
        answer => answer?,
    };
    match (answer, now) {
        (Value::Int(1), true) => Ok(Broken::Freed),
        (Value::Int(0), true) | (Value::Int(GONE), false) => Ok(Broken::AlreadyGone),
        // A holder of another program may have no end.
        (Value::Int(left), false) => Ok(Broken::FreeWithin(
            u64::try_from(left).ok().map(Duration::from_millis),
        )),
        _ => Err(error::protocol("break")),
    }
}

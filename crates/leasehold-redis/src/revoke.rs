//! Taking a lock from a holder that an inspection showed.

use std::time::Duration;

use leasehold_core::{HolderRef, Mode, Result, Revocation, RevokeOutcome};
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
pub(crate) async fn revoke(
    link: &Link,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    use Revocation::{Graceful, Immediate};

    Keys::check(&link.config.prefix, &holder.key).map_err(|error| error.with_operation("break"))?;
    let keys = Keys::new(&link.config.prefix, &holder.key);
    let id = holder.id.as_slice();
    let script = match (holder.mode, revocation) {
        (Some(Mode::Shared), Immediate) => &scripts::RELEASE_SHARED,
        (Some(Mode::Permit { .. }), Immediate) => &scripts::RELEASE_PERMIT,
        (_, Immediate) => &scripts::RELEASE,
        (Some(Mode::Shared | Mode::Permit { .. }), Graceful) => &scripts::MARK_MEMBER,
        (_, Graceful) => &scripts::MARK,
    };
    let arguments = |cmd: &mut Cmd, again: bool| {
        match holder.mode {
            Some(Mode::Shared) if revocation == Immediate => cmd
                .arg(1)
                .arg(keys.lock())
                .arg(id)
                .arg(keys.derived(Kind::Readers)),
            Some(Mode::Shared) => cmd.arg(1).arg(keys.derived(Kind::Readers)).arg(id),
            Some(Mode::Permit { .. }) => cmd.arg(1).arg(keys.derived(Kind::Permits)).arg(id),
            _ => cmd.arg(1).arg(keys.lock()).arg(id),
        };
        if again && revocation == Graceful {
            cmd.arg("again");
        }
    };
    let live = link.live_in_order("break").await?;
    let answer = match link
        .run_on(&live, script, "break", Effect::Writes, |cmd| {
            arguments(cmd, false);
        })
        .await
    {
        Err(broken) if error::broke(&broken) => {
            let Ok(live) = link.live().await else {
                return Err(broken);
            };
            link.run_on(&live, script, "break", Effect::Writes, |cmd| {
                arguments(cmd, true);
            })
            .await?
        }
        answer => answer?,
    };
    match (answer, revocation) {
        (Value::Int(1), Immediate) => Ok(RevokeOutcome::Freed),
        (Value::Int(0), Immediate) | (Value::Int(GONE), Graceful) => Ok(RevokeOutcome::AlreadyGone),
        // A holder of another program may have no end.
        (Value::Int(left), Graceful) => Ok(RevokeOutcome::FreeWithin(
            u64::try_from(left).ok().map(Duration::from_millis),
        )),
        _ => Err(error::protocol("break")),
    }
}

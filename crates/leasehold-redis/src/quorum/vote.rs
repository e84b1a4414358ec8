//! The votes of a node: acquisition on the requirements of a quorum, and the strict write-back of
//! tokens.

use leasehold_core::{
    ErrorKind, FencingToken, Mode, Result,
    backend::Request,
    quorum::{TokenVote, VoteRequirements},
};
use redis::{Cmd, Value};

use crate::{
    commands,
    connection_manager::ConnectionManager,
    error::{ERRORS, SideEffect},
    keys::{self, Keys, Kind, LockValue},
    quorum::{read_state, state::CachedNodeState},
    scripts::{self, Script},
};

/// The error code of a script that found another marker or another run than expected.
const MARKER_CHANGED: &str = "LEASEMARK";

/// Makes one attempt to acquire the lock on these requirements. `again` means that the same attempt
/// was sent before and its answer was lost.
pub(crate) async fn acquire(
    manager: &ConnectionManager,
    request: &Request,
    requirements: &VoteRequirements,
    keys: &Keys<'_>,
    again: bool,
) -> Result<Value> {
    let shared = request.mode() == Mode::Shared;
    let script = if shared {
        &scripts::QUORUM_ACQUIRE_SHARED
    } else {
        &scripts::QUORUM_ACQUIRE
    };
    // An earlier attempt of this acquisition may have registered it.
    let registered = again || request.owner() != request.waiting().id;
    let [mark, _, top] = keys::of_node(&manager.config.prefix);
    let (lock, fence) = (keys.lock(), keys.derived(Kind::Fence));
    let [readers, order, writers, waiters] =
        [Kind::Readers, Kind::Order, Kind::Writers, Kind::Waiters].map(|kind| keys.derived(kind));
    with_requirements(
        manager,
        "acquire",
        script,
        requirements,
        |cmd, node_state| {
            if shared {
                commands::add_keys(
                    cmd,
                    [lock, fence, readers, order, writers, waiters, mark, top],
                );
            } else {
                commands::add_keys(cmd, [lock, fence, order, writers, waiters, mark, top]);
            }
            cmd.arg(LockValue::of(request).parts())
                .arg(request.ttl().as_millis())
                .arg(LockValue::waiting(request).parts())
                .arg(node_state.mark.as_str())
                .arg(&node_state.run)
                .arg(node_state.mark.above)
                .arg(requirements.token_floor.get())
                .arg(commands::options(request, registered));
        },
    )
    .await
}

/// Writes a token back, strictly: only if the lock is still held and the stored token is smaller.
pub(crate) async fn raise(
    manager: &ConnectionManager,
    request: &Request,
    requirements: &VoteRequirements,
    token: FencingToken,
) -> Result<TokenVote> {
    let keys = Keys::new(&manager.config.prefix, request.key());
    let [mark, _, top] = keys::of_node(&manager.config.prefix);
    let mode = if request.mode() == Mode::Shared {
        "shared"
    } else {
        "exclusive"
    };
    let answer = with_requirements(
        manager,
        "raise",
        &scripts::QUORUM_RAISE,
        requirements,
        |cmd, node_state| {
            let [fence, readers] = [Kind::Fence, Kind::Readers].map(|kind| keys.derived(kind));
            commands::add_keys(cmd, [keys.lock(), fence, readers, mark, top])
                .arg(LockValue::of(request).parts())
                .arg(token.get())
                .arg(node_state.mark.as_str())
                .arg(&node_state.run)
                .arg(node_state.mark.above)
                .arg(mode);
        },
    )
    .await?;
    match answer {
        Value::Int(1) => Ok(TokenVote::Accepted),
        Value::Int(0) => Ok(TokenVote::Refused(None)),
        Value::BulkString(higher) => {
            let higher = std::str::from_utf8(&higher)
                .ok()
                .and_then(|higher| higher.parse().ok());
            higher
                .map(|higher| TokenVote::Refused(Some(higher)))
                .ok_or_else(|| ERRORS.unexpected("raise"))
        }
        _ => Err(ERRORS.unexpected("raise")),
    }
}

/// Runs a script that compares the marker and the run. Reads them again and repeats it once if they
/// have changed.
async fn with_requirements(
    manager: &ConnectionManager,
    operation: &'static str,
    script: &Script,
    requirements: &VoteRequirements,
    arguments: impl Fn(&mut Cmd, &CachedNodeState),
) -> Result<Value> {
    let conn = manager.connection_flushed(operation).await?;
    let mut node_state = read_state::current(manager, &conn).await?;
    for again in [true, false] {
        node_state.admit(requirements)?;
        match conn.run(script, |cmd| arguments(cmd, &node_state)).await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.code() == Some(MARKER_CHANGED) => {
                if again {
                    node_state = Box::pin(read_state::read(manager, &conn, None)).await?;
                }
            }
            Err(error) => {
                return Err(manager.map_error(&conn, error, operation, SideEffect::Writes));
            }
        }
    }
    Err(ERRORS.error(
        ErrorKind::Unavailable,
        operation,
        "the marker of the node changes repeatedly; try again",
    ))
}

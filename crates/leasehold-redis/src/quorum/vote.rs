//! The votes of a node: acquisition on the requirements of a quorum, and the strict write-back of
//! tokens.

use std::{error::Error as _, sync::Arc};

use leasehold_core::{
    Error, ErrorKind, FencingToken, Mode, Result,
    backend::Request,
    quorum::{TokenVote, VoteRequirements},
};
use redis::{Cmd, RedisError, Value};

use crate::{
    commands,
    connection::Connection,
    connection_manager::ConnectionManager,
    error::{ERRORS, SideEffect},
    job::{Job, Vote},
    keys::{self, Keys, Kind, LockValue},
    quorum::{read_state, state::CachedNodeState},
    scripts::{self, Script},
};

/// The error code of a script that found another marker or another run than expected.
const MARKER_CHANGED: &str = "LEASEMARK";

/// Makes one attempt to acquire the lock on these requirements. `again` means that the same attempt
/// was sent before and its answer was lost.
pub(crate) async fn acquire(
    manager: &Arc<ConnectionManager>,
    request: &Request,
    requirements: &VoteRequirements,
    keys: &Keys<'_>,
    again: bool,
) -> Result<Value> {
    // An earlier attempt of a waiter may have registered it.
    let waiting = request.waiting();
    let is_waiter = waiting.keeps_waiting || waiting.in_order;
    let registered = again || is_waiter && request.owner() != waiting.id;
    let token_floor = requirements.token_floor;
    if request.mode() == Mode::Exclusive {
        let vote = |_, node_state| {
            manager.operate(Job::Vote(Vote {
                request: request.clone(),
                node_state,
                token_floor,
                registered,
            }))
        };
        return with_requirements(manager, "acquire", requirements, vote).await;
    }
    let [mark, _, top] = keys::of_node(&manager.config.prefix);
    let (lock, fence) = (keys.lock(), keys.derived(Kind::Fence));
    let [readers, order, writers, waiters] =
        [Kind::Readers, Kind::Order, Kind::Writers, Kind::Waiters].map(|kind| keys.derived(kind));
    let arguments = |cmd: &mut Cmd, node_state: &CachedNodeState| {
        commands::add_keys(
            cmd,
            [lock, fence, readers, order, writers, waiters, mark, top],
        )
        .arg(LockValue::of(request).parts())
        .arg(request.ttl().as_millis())
        .arg(LockValue::waiting(request).parts())
        .arg(node_state.mark.as_str())
        .arg(&node_state.run)
        .arg(node_state.mark.above)
        .arg(token_floor.get())
        .arg(commands::options(request, registered));
    };
    let script = &scripts::QUORUM_ACQUIRE_SHARED;
    run_with_requirements(manager, "acquire", script, requirements, arguments).await
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
    let answer = run_with_requirements(
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

/// Runs a script that compares the marker and the run.
async fn run_with_requirements(
    manager: &ConnectionManager,
    operation: &'static str,
    script: &Script,
    requirements: &VoteRequirements,
    arguments: impl Fn(&mut Cmd, &CachedNodeState),
) -> Result<Value> {
    let arguments = &arguments;
    let run = |conn: Arc<Connection>, node_state: Arc<CachedNodeState>| async move {
        manager.flush();
        let arguments = |cmd: &mut Cmd| arguments(cmd, &node_state);
        manager
            .run_on(&conn, script, operation, SideEffect::Writes, arguments)
            .await
    };
    with_requirements(manager, operation, requirements, run).await
}

/// Runs an operation that compares the marker and the run of the server. Reads them again and
/// repeats it once if they have changed.
async fn with_requirements<F: Future<Output = Result<Value>>>(
    manager: &ConnectionManager,
    operation: &'static str,
    requirements: &VoteRequirements,
    run: impl Fn(Arc<Connection>, Arc<CachedNodeState>) -> F,
) -> Result<Value> {
    let mut outdated = None;
    for _ in 0..2 {
        let conn = manager.connection().await;
        let conn = conn.map_err(|error| error.with_operation(operation))?;
        let mut node_state = read_state::current(manager, &conn).await?;
        // Another task may have read it meanwhile.
        if outdated.is_some_and(|outdated| Arc::ptr_eq(&outdated, &node_state)) {
            node_state = Box::pin(read_state::read(manager, &conn, None)).await?;
        }
        node_state.admit(requirements)?;
        match run(conn, Arc::clone(&node_state)).await {
            Err(error) if is_marker_changed(&error) => outdated = Some(node_state),
            answer => return answer,
        }
    }
    Err(ERRORS.error(
        ErrorKind::Unavailable,
        operation,
        "the marker of the node changes repeatedly; try again",
    ))
}

/// Returns whether the script found another marker or another run than expected.
fn is_marker_changed(error: &Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<RedisError>())
        .is_some_and(|error| error.code() == Some(MARKER_CHANGED))
}

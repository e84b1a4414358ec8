//! Votes of this server as a node of a quorum.

use leasehold_core::{
    ErrorKind, FencingToken, Mode, Result,
    backend::Request,
    quorum::{TokenVote, VoteRequirements},
};
use redis::{Cmd, Value};

use crate::{
    commands,
    connection::Link,
    error::{self, Effect},
    keys::{Keys, Kind, NODE_KEYS},
    node_state::CachedNodeState,
    scripts::{self, Script},
    value::Holder,
};

/// The code of a script that found another mark or another run than it was told.
const MARKED_ANEW: &str = "LEASEMARK";

/// Makes one attempt to take the lock, if the node meets these requirements. `again`: the same was
/// sent before, and its answer was lost.
pub(crate) async fn acquire(
    link: &Link,
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
    let node = [&*link.config.prefix, NODE_KEYS].concat();
    // An earlier attempt of this acquisition may have registered it.
    let flags = commands::flags(request, again || request.owner() != request.waiter());
    let floor = requirements.token_floor.get();
    with_requirements(link, "acquire", script, requirements, |cmd, node_state| {
        if shared {
            cmd.arg(2).arg(keys.lock()).arg(keys.derived(Kind::Writers));
        } else {
            cmd.arg(1).arg(keys.lock());
        }
        cmd.arg(Holder::of(request).parts())
            .arg(request.ttl().as_millis())
            .arg(Holder::waiting(request).parts());
        cmd.arg(flags)
            .arg(keys.base())
            .arg(&node)
            .arg(node_state.mark.as_str())
            .arg(node_state.mark.above)
            .arg(floor);
        cmd.arg(&node_state.run);
    })
    .await
}

/// The strict write-back of a token.
pub(crate) async fn raise(
    link: &Link,
    request: &Request,
    requirements: &VoteRequirements,
    token: FencingToken,
) -> Result<TokenVote> {
    let keys = Keys::new(&link.config.prefix, request.key());
    let node = [&*link.config.prefix, NODE_KEYS].concat();
    let mode = if request.mode() == Mode::Shared {
        "s"
    } else {
        "x"
    };
    let answer = with_requirements(
        link,
        "raise",
        &scripts::QUORUM_RAISE,
        requirements,
        |cmd, node_state| {
            cmd.arg(1)
                .arg(keys.lock())
                .arg(Holder::of(request).parts())
                .arg(token.get());
            cmd.arg(keys.base())
                .arg(&node)
                .arg(node_state.mark.as_str())
                .arg(mode)
                .arg(node_state.mark.above);
            cmd.arg(&node_state.run);
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
                .ok_or_else(|| error::protocol("raise"))
        }
        _ => Err(error::protocol("raise")),
    }
}

/// Runs a script that compares the mark and the run, and once more if they have changed since they
/// were read.
async fn with_requirements(
    link: &Link,
    operation: &'static str,
    script: &Script,
    requirements: &VoteRequirements,
    arguments: impl Fn(&mut Cmd, &CachedNodeState),
) -> Result<Value> {
    let live = link.live_in_order(operation).await?;
    let mut node_state = CachedNodeState::of(link, &live).await?;
    for again in [true, false] {
        node_state.admit(requirements)?;
        match live.run(script, |cmd| arguments(cmd, &node_state)).await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.code() == Some(MARKED_ANEW) => {
                if again {
                    node_state = Box::pin(CachedNodeState::look(link, &live, None)).await?;
                }
            }
            Err(error) => return Err(link.failed(&live, error, operation, Effect::Writes)),
        }
    }
    Err(error::plain(
        ErrorKind::Unavailable,
        operation,
        "the node's mark changes again and again; try again",
    ))
}

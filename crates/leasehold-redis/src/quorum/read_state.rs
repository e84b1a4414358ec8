//! Reads the [`CachedNodeState`] of a server.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use leasehold_core::{
    AcquisitionId, FencingToken, Result,
    quorum::{Durability, Eligibility, Watched},
};
use redis::{Pipeline, Value};

use crate::{
    commands,
    connection::Connection,
    connection_manager::ConnectionManager,
    error::{ERRORS, SideEffect},
    handshake::field,
    keys,
    quorum::{marker::NodeMarker, state::CachedNodeState},
    scripts,
};

/// The maximum age of the state of a node that may not vote, because another client may have let it
/// rejoin meanwhile.
const MAX_AGE: Duration = Duration::from_millis(500);

/// Returns the known state, or reads it if it may have changed.
pub(crate) async fn current(
    manager: &ConnectionManager,
    conn: &Connection,
) -> Result<Arc<CachedNodeState>> {
    match conn
        .node_state()
        .filter(|node_state| node_state.votes() || node_state.read_at.elapsed() < MAX_AGE)
    {
        Some(node_state) => Ok(node_state),
        None => Box::pin(read(manager, conn, None)).await,
    }
}

/// Reads the state of the server, and reports for how long the server was watched.
pub(crate) async fn read(
    manager: &ConnectionManager,
    conn: &Connection,
    watched: Option<Watched>,
) -> Result<Arc<CachedNodeState>> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("INFO").arg("persistence");
    pipeline.cmd("CONFIG").arg("GET").arg("*appendfsync*");
    let answers = conn.send_all(&pipeline).await;
    let answers =
        answers.map_err(|error| manager.map_error(conn, error, "read_state", SideEffect::None))?;
    let mut answers = answers.into_iter();
    let mut next = || {
        answers
            .next()
            .and_then(|answer| answer.extract_error().ok())
            .unwrap_or(Value::Nil)
    };
    let persistence: String = redis::from_redis_value(next()).unwrap_or_default();
    let settings: HashMap<String, String> = redis::from_redis_value(next()).unwrap_or_default();
    // With `yes` there, nothing is flushed for as long as the file is rewritten.
    let is = |setting: &str, value: &str| settings.get(setting).is_some_and(|set| set == value);
    let every_write = is("appendfsync", "always") && is("no-appendfsync-on-rewrite", "no");
    let durable = field(&persistence, "aof_enabled") == "1" && every_write;

    let (version, before, duration) = match watched {
        Some(Watched {
            version,
            before,
            duration,
        }) => (version, before.as_millis(), duration.as_millis()),
        None => (String::new(), 0, 0),
    };
    let millis = |time| u64::try_from(time).unwrap_or(u64::MAX);
    let name = AcquisitionId::random().to_string();
    let arguments = |cmd: &mut redis::Cmd| {
        commands::add_keys(cmd, keys::of_node(&manager.config.prefix))
            .arg(&name)
            .arg(&version)
            .arg(millis(before))
            .arg(millis(duration));
    };
    let answer = manager
        .run_on(
            conn,
            &scripts::QUORUM_STATE,
            "read_state",
            SideEffect::None,
            arguments,
        )
        .await?;
    let (run, mark, highest, watched, version, now): (String, String, u64, u64, String, u64) =
        redis::from_redis_value(answer).map_err(|_| ERRORS.unexpected("read_state"))?;
    let mark = NodeMarker::parse(mark);
    let memory = if mark.is_of_run(&run) {
        Durability::Confirmed
    } else {
        Durability::Unknown
    };
    let eligibility = Eligibility {
        durability: memory,
        watched_for: Duration::from_millis(watched),
    };
    let node_state = Arc::new(CachedNodeState {
        run,
        mark,
        version,
        eligibility,
        highest_token: FencingToken::new(highest),
        wall_clock: Duration::from_millis(now),
        durable,
        read_at: Instant::now(),
    });
    conn.set_node_state(Some(Arc::clone(&node_state)));
    Ok(node_state)
}

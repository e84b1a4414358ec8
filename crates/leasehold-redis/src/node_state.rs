//! [`CachedNodeState`]: what a connection knows about the memory of its server.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use leasehold_core::{
    AcquisitionId, Error, ErrorKind, FencingToken, Result,
    quorum::{Durability, Eligibility, VoteRequirements, Watched},
};
use redis::{Pipeline, Value};

use crate::{
    conn::Conn,
    connection::Link,
    error::{self, Effect},
    handshake::field,
    keys::NODE_KEYS,
    marker::NodeMarker,
    scripts,
};

/// A node that may not vote is looked at anew this often, as somebody may have let it rejoin.
const STALE: Duration = Duration::from_millis(500);

/// What a connection knows about the memory of its server. It is read once, and again when a script
/// finds that the mark or the run has changed: behind a proxy, one connection may be served by
/// several runs of the server.
#[derive(Clone, Debug)]
pub(crate) struct CachedNodeState {
    /// Names the run of the server and the history of its data.
    pub(crate) run: String,
    pub(crate) mark: NodeMarker,
    /// What an epoch record compares.
    pub(crate) version: String,
    pub(crate) eligibility: Eligibility,
    pub(crate) highest_token: FencingToken,
    /// The server's wall clock.
    pub(crate) wall_clock: Duration,
    /// Whether it writes everything down before it answers.
    pub(crate) durable: bool,
    seen: Instant,
}

impl CachedNodeState {
    /// What is known, or after a look.
    pub(crate) async fn of(link: &Link, live: &Conn) -> Result<Arc<Self>> {
        match live
            .node_state()
            .filter(|node_state| node_state.votes() || node_state.seen.elapsed() < STALE)
        {
            Some(node_state) => Ok(node_state),
            None => Box::pin(Self::look(link, live, None)).await,
        }
    }

    /// Asks the server, and tells it for how long it was watched.
    pub(crate) async fn look(
        link: &Link,
        live: &Conn,
        watched: Option<Watched>,
    ) -> Result<Arc<Self>> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("INFO").arg("persistence");
        pipeline.cmd("CONFIG").arg("GET").arg("*appendfsync*");
        let answers = live.send_all(&pipeline).await;
        let answers = answers.map_err(|error| link.failed(live, error, "recall", Effect::None))?;
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
            cmd.arg(0)
                .arg([&*link.config.prefix, NODE_KEYS].concat())
                .arg(&name);
            cmd.arg(&version).arg(millis(before)).arg(millis(duration));
        };
        let answer = link
            .run_on(
                live,
                &scripts::QUORUM_RECALL,
                "recall",
                Effect::None,
                arguments,
            )
            .await?;
        let (run, mark, highest, watched, version, now): (String, String, u64, u64, String, u64) =
            redis::from_redis_value(answer).map_err(|_| error::protocol("recall"))?;
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
        let node_state = Arc::new(Self {
            run,
            mark,
            version,
            eligibility,
            highest_token: FencingToken::new(highest),
            wall_clock: Duration::from_millis(now),
            durable,
            seen: Instant::now(),
        });
        live.set_node_state(Some(Arc::clone(&node_state)));
        Ok(node_state)
    }

    pub(crate) fn votes(&self) -> bool {
        self.eligibility.durability == Durability::Confirmed
    }

    /// Returns an error if the node does not meet these requirements.
    pub(crate) fn admit(&self, requirements: &VoteRequirements) -> Result<()> {
        if self.votes() {
            return Ok(());
        }
        if requirements.epoch_required {
            let message = match self.grace_left(requirements.largest_ttl) {
                Some(left) => {
                    format!(
                        "it may have lost its memory, and must be watched for another {left:?} before it may rejoin"
                    )
                }
                None => String::from(
                    "it may have lost its memory, and has not rejoined: a majority of the others must vote, else see \
                     `leasehold init`",
                ),
            };
            return Err(refuse(message));
        }
        match self.grace_left(requirements.largest_ttl) {
            Some(left) => Err(refuse(format!(
                "it may have forgotten locks that are held, and votes once it has been watched for another {left:?}; for servers \
                 that nobody has used yet, run `leasehold init --assume-fresh`"
            ))),
            None => Ok(()),
        }
    }

    /// What is left of the grace, in whole seconds.
    fn grace_left(&self, grace: Duration) -> Option<Duration> {
        let left = grace.checked_sub(self.eligibility.watched_for)?;
        (!left.is_zero()).then(|| Duration::from_secs(left.as_secs() + 1))
    }
}

fn refuse(message: String) -> Error {
    error::plain(ErrorKind::Unavailable, "acquire", message)
}

//! [`Sight`]: what a connection knows about the memory of its server.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use leasehold_core::{
    Error, ErrorKind, FencingToken, Result,
    quorum::{Membership, Memory, Terms},
};
use redis::{Pipeline, Value};

use crate::{
    connection::Link,
    error::{self, Effect},
    keys::NODE_KEYS,
    live::Live,
    mark::Mark,
    probe::field,
    scripts,
};

/// A node that may not vote is looked at anew this often, as somebody may have let it rejoin.
const STALE: Duration = Duration::from_millis(500);

/// What a connection knows about the memory of its server. One connection is served by one run of the server, so this is read
/// once, and again when the mark has changed.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    pub(crate) mark: Mark,
    /// What an attestation compares.
    pub(crate) version: String,
    pub(crate) membership: Membership,
    pub(crate) highest_token: FencingToken,
    /// For how long the server had been up.
    pub(crate) up: Duration,
    /// Whether it writes everything down before it answers.
    pub(crate) durable: bool,
    seen: Instant,
}

impl Sight {
    /// What is known, or after a look.
    pub(crate) async fn of(link: &Link, live: &Live) -> Result<Arc<Self>> {
        match live.sight().filter(|sight| sight.votes() || sight.seen.elapsed() < STALE) {
            Some(sight) => Ok(sight),
            None => Box::pin(Self::look(link, live)).await,
        }
    }

    /// Asks the server.
    pub(crate) async fn look(link: &Link, live: &Live) -> Result<Arc<Self>> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("INFO").arg("server");
        pipeline.cmd("INFO").arg("persistence");
        pipeline.cmd("CONFIG").arg("GET").arg("*appendfsync*");
        let answers = live.send_all(&pipeline).await;
        let answers = answers.map_err(|error| link.failed(live, error, "recall", Effect::None))?;
        let mut answers = answers.into_iter();
        let mut next = || answers.next().and_then(|answer| answer.extract_error().ok()).unwrap_or(Value::Nil);
        let server: String = redis::from_redis_value(next()).unwrap_or_default();
        let persistence: String = redis::from_redis_value(next()).unwrap_or_default();
        let settings: HashMap<String, String> = redis::from_redis_value(next()).unwrap_or_default();
        // With `yes` there, nothing is flushed for as long as the file is rewritten.
        let is = |setting: &str, value: &str| settings.get(setting).is_some_and(|set| set == value);
        let every_write = is("appendfsync", "always") && is("no-appendfsync-on-rewrite", "no");
        let durable = field(&persistence, "aof_enabled") == "1" && every_write;
        // The server subtracts two times that it has cut to whole seconds: it may say nearly one too many.
        let up = Duration::from_secs(field(&server, "uptime_in_seconds").parse::<u64>().unwrap_or(0).saturating_sub(1));

        let run = live.run_id();
        let arguments = |cmd: &mut redis::Cmd| {
            cmd.arg(0)
                .arg([&*link.config.prefix, NODE_KEYS].concat())
                .arg(run)
                .arg(u64::try_from(up.as_millis()).unwrap_or(0));
        };
        let answer = link.run_on(live, &scripts::QUORUM_RECALL, "recall", Effect::None, arguments).await?;
        let (mark, highest, could, version): (String, u64, u64, String) =
            redis::from_redis_value(answer).map_err(|_| error::protocol("recall"))?;
        let mark = Mark::parse(mark);
        let memory = match (mark.is_durable(), mark.is_of_run(run)) {
            (true, _) if durable => Memory::Durable,
            (_, true) => Memory::Attested,
            _ => Memory::Unknown,
        };
        let membership = Membership { memory, could_grant_for: Duration::from_millis(could) };
        let sight = Arc::new(Self {
            mark,
            version,
            membership,
            highest_token: FencingToken::new(highest),
            up,
            durable,
            seen: Instant::now(),
        });
        live.set_sight(Some(Arc::clone(&sight)));
        Ok(sight)
    }

    pub(crate) fn votes(&self) -> bool {
        self.membership.memory != Memory::Unknown
    }

    /// Whether the node may grant under these terms.
    pub(crate) fn admit(&self, terms: &Terms) -> Result<()> {
        if self.votes() {
            return Ok(());
        }
        if terms.attested {
            let message = match self.grace_left(terms.largest_ttl, self.membership.could_grant_for) {
                Some(left) => {
                    format!("it may have lost its memory, and waits for another {left:?} before it may rejoin")
                }
                None => String::from(
                    "it may have lost its memory, and has not rejoined: a majority of the others must vote, else see \
                     `leasehold provision`",
                ),
            };
            return Err(refuse(message));
        }
        match self.grace_left(terms.largest_ttl, self.up) {
            Some(left) => Err(refuse(format!(
                "it was just started, may have forgotten locks that are held, and votes in {left:?}; for servers that nobody \
                 has used yet, run `leasehold provision --never-used`"
            ))),
            None => Ok(()),
        }
    }

    /// What is left of the grace, in whole seconds.
    fn grace_left(&self, grace: Duration, known: Duration) -> Option<Duration> {
        let left = grace.checked_sub(known + self.seen.elapsed())?;
        (!left.is_zero()).then(|| Duration::from_secs(left.as_secs() + 1))
    }
}

fn refuse(message: String) -> Error {
    error::plain(ErrorKind::Unavailable, "acquire", message)
}

//! [`CachedNodeState`]: the state of a server as a node of a quorum.

use std::time::{Duration, Instant};

use leasehold_core::{
    Error, ErrorKind, FencingToken, Result,
    quorum::{Durability, Eligibility, VoteRequirements},
};

use crate::{error::ERRORS, quorum::marker::NodeMarker};

/// The state of a server as a node, as far as a connection knows it. It is read once, and again
/// when a script finds that the marker or the run has changed: behind a proxy, one connection may
/// lead to several runs of the server.
#[derive(Clone, Debug)]
pub(crate) struct CachedNodeState {
    /// Names the run of the server and the history of its data.
    pub(crate) run: String,
    pub(crate) mark: NodeMarker,
    /// The version that an epoch record compares.
    pub(crate) version: String,
    pub(crate) eligibility: Eligibility,
    pub(crate) highest_token: FencingToken,
    /// The server's wall clock.
    pub(crate) wall_clock: Duration,
    /// Whether it writes everything down before it answers.
    pub(crate) durable: bool,
    pub(crate) read_at: Instant,
}

impl CachedNodeState {
    #[cfg(test)]
    pub(crate) fn of_run(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            mark: NodeMarker::default(),
            version: String::new(),
            eligibility: Eligibility {
                durability: Durability::Confirmed,
                watched_for: Duration::ZERO,
            },
            highest_token: FencingToken::new(0),
            wall_clock: Duration::ZERO,
            durable: false,
            read_at: Instant::now(),
        }
    }

    pub(crate) fn votes(&self) -> bool {
        self.eligibility.durability == Durability::Confirmed
    }

    /// Fails unless the node may grant under these requirements.
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

    /// Returns the rest of the grace period, in whole seconds.
    fn grace_left(&self, grace: Duration) -> Option<Duration> {
        let left = grace.checked_sub(self.eligibility.watched_for)?;
        (!left.is_zero()).then(|| Duration::from_secs(left.as_secs() + 1))
    }
}

fn refuse(message: String) -> Error {
    ERRORS.error(ErrorKind::Unavailable, "acquire", message)
}

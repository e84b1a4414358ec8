//! Provisioning: an operator's statement that the nodes have lost no data.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    backend::inspection::NodeStatus,
    clock::Clock,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    quorum::{
        backend::QuorumBackend,
        discovery::read_states,
        node::{EpochRecord, NodeState},
    },
    ttl::Ttl,
};

/// The interval at which nodes are read while a grace period is awaited, since they may restart.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The parameters of [`QuorumBackend::provision`].
#[derive(Clone, Debug)]
pub struct Provision {
    largest_ttl: Ttl,
    durable: bool,
    never_used: bool,
}

impl Provision {
    /// Creates parameters for locks whose TTL is at most `largest_ttl`.
    #[must_use]
    pub fn new(largest_ttl: Ttl) -> Self {
        Self {
            largest_ttl,
            durable: false,
            never_used: false,
        }
    }

    /// States that the nodes lose nothing in a restart (Redis: `appendonly yes`,
    /// `appendfsync always`). Each node is asked whether its settings agree.
    ///
    /// A durable node waits for the longest TTL after a restart, like any other, because it cannot
    /// detect that its data was replaced by older data. But it then needs no other nodes that vote,
    /// so that all nodes may restart at once.
    #[must_use]
    pub fn with_durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// States that no client holds or has held a lock on these nodes, so that nodes which may have
    /// lost data need no grace period.
    #[must_use]
    pub fn with_never_used(mut self, never_used: bool) -> Self {
        self.never_used = never_used;
        self
    }
}

impl QuorumBackend {
    /// Records on all nodes that they have lost no data up to now.
    ///
    /// Until this has been done once, and again after a majority has lost its data, tokens are
    /// [`BestEffort`](crate::Fencing::BestEffort). A single node that restarts is readmitted
    /// without it.
    ///
    /// All nodes must answer. Their next tokens will be larger than every token that any of them
    /// has stored. The call waits until all locks have expired that a node may have lost, which
    /// takes until the node has been watched for the longest TTL. It does not wait if the nodes
    /// were [never used](Provision::with_never_used).
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`] if a node cannot vote on tokens, or should be durable and is
    ///   not.
    /// - [`ErrorKind::Unavailable`] if a node does not answer, restarts, or is provisioned by
    ///   another client at the same time. Some nodes may be provisioned then. That is safe, and
    ///   calling again provisions the rest.
    ///
    /// # Cancel safety
    /// A dropped call has the same effect as an error.
    pub async fn provision(&self, provision: &Provision) -> Result<Vec<NodeStatus>> {
        let refuse = |kind, message| {
            Error::new(kind, message)
                .with_backend(self.state.config.scheme)
                .with_operation("provision")
        };
        if !self.state.has_tokens {
            let non_voter = self
                .state
                .members
                .iter()
                .find(|member| member.voter.is_none());
            return Err(refuse(
                ErrorKind::Unsupported,
                format!(
                    "{} cannot vote on fencing tokens, so this quorum has no tokens and nothing to provision",
                    non_voter.map_or("a node", |member| &member.endpoint)
                ),
            ));
        }
        let nodes = loop {
            let nodes = self.all_states().await?;
            // Locks of the largest TTL that was recorded before may still be held.
            let promised = nodes.iter().filter_map(|node| node.largest_ttl).max();
            let grace = promised
                .map_or(provision.largest_ttl, |ttl| ttl.max(provision.largest_ttl))
                .as_duration();
            let waits = nodes
                .iter()
                .filter(|node| !node.votes() && !provision.never_used);
            let left = waits
                .map(|node| grace.saturating_sub(node.eligibility.watched_for))
                .max()
                .unwrap_or_default();
            if left.is_zero() {
                break nodes;
            }
            tracing::info!(target: "leasehold", ?left, "waiting until locks have expired that a node may have lost");
            sleep(left.min(POLL_INTERVAL)).await;
        };
        // Read the nodes again, because grants that were running when the grace period ended count
        // too.
        let settled = self.all_states().await?;
        let highest = nodes.iter().chain(&settled).map(|node| node.highest_token);
        let above = highest.max().unwrap_or(FencingToken::new(0));
        for (member, node) in self.state.members.iter().zip(nodes) {
            let Some(voter) = &member.voter else { continue };
            let NodeState {
                incarnation,
                version,
                ..
            } = node;
            let (durable, largest_ttl) = (provision.durable, provision.largest_ttl);
            let record = EpochRecord {
                incarnation,
                version,
                durable,
                largest_ttl,
                above,
            };
            Arc::clone(voter)
                .record_epoch(record)
                .await
                .map_err(|error| {
                    refuse(
                        error.kind(),
                        format!("{}: {}", member.endpoint, error.message()),
                    )
                    .with_source(error)
                })?;
        }
        self.state.require_epoch(Some(provision.largest_ttl));
        Ok(self.nodes())
    }

    async fn all_states(&self) -> Result<Vec<NodeState>> {
        let (mut nodes, mut problems) = (Vec::new(), Vec::new());
        for (at, node) in read_states(&self.state.members)
            .await
            .into_iter()
            .enumerate()
        {
            match node {
                Some(Ok(node)) => {
                    self.state.members[at].learn(&Ok(()), crate::clock::SystemClock.now());
                    nodes.push(node);
                }
                Some(Err(error)) => problems.push((at, error)),
                None => {}
            }
        }
        if problems.is_empty() {
            Ok(nodes)
        } else {
            Err(self
                .state
                .unavailable(&problems)
                .with_operation("provision"))
        }
    }
}

//! Provisioning: saying by hand that the nodes remember everything.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    clock::Clock,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    inspection::NodeStatus,
    quorum::{
        backend::QuorumBackend,
        discovery::recall_all,
        node::{Attestation, Recollection},
    },
    ttl::Ttl,
};

/// How often a node is looked at while its grace is awaited: it may restart meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// How to provision the nodes of a quorum.
#[derive(Clone, Debug)]
pub struct Provision {
    largest_ttl: Ttl,
    durable: bool,
    never_used: bool,
}

impl Provision {
    /// Nodes whose locks have no longer TTL than this.
    #[must_use]
    pub fn new(largest_ttl: Ttl) -> Self {
        Self {
            largest_ttl,
            durable: false,
            never_used: false,
        }
    }

    /// The nodes lose nothing in a restart (Redis: `appendonly yes`, `appendfsync always`). Each is
    /// asked whether that is so.
    ///
    /// Such a node waits for the longest TTL after a restart, as any other does, because it cannot
    /// tell whether older data was put in the place of its own. But then it needs no others that
    /// vote: all nodes may restart at once.
    #[must_use]
    pub fn with_durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Nobody holds or has held a lock here, so that nodes which may have forgotten need no grace.
    #[must_use]
    pub fn with_never_used(mut self, never_used: bool) -> Self {
        self.never_used = never_used;
        self
    }
}

impl QuorumBackend {
    /// Attests all nodes: that, from now on, they have forgotten nothing. Until that is done once,
    /// and again after a majority has lost its memory, tokens are
    /// [`BestEffort`](crate::Fencing::BestEffort). A single node that restarts rejoins by itself.
    ///
    /// All nodes must answer. Their next tokens are above all that any of them remembers. Unless
    /// nobody [ever held a lock](Provision::with_never_used) here, this waits until the locks have
    /// expired that a node may have forgotten: until the node has been watched for the longest TTL.
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`] if a node cannot vote on tokens, or is to be durable and is
    ///   not.
    /// - [`ErrorKind::Unavailable`] if a node does not answer, restarts, or is attested by another
    ///   at the same time. Then some nodes may be attested; that is safe, and the same call attests
    ///   the rest.
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn provision(&self, provision: &Provision) -> Result<Vec<NodeStatus>> {
        let refuse = |kind, message| {
            Error::new(kind, message)
                .with_backend(self.config.scheme)
                .with_operation("provision")
        };
        if !self.has_tokens {
            let mute = self.members.iter().find(|member| member.voter.is_none());
            return Err(refuse(
                ErrorKind::Unsupported,
                format!(
                    "{} cannot vote on fencing tokens, so this quorum has none and nothing to provision",
                    mute.map_or("a node", |member| &member.endpoint)
                ),
            ));
        }
        let nodes = loop {
            let nodes = self.all_recollections().await?;
            // Locks of the largest TTL that was promised before may still be held.
            let promised = nodes.iter().filter_map(|node| node.largest_ttl).max();
            let grace = promised
                .map_or(provision.largest_ttl, |ttl| ttl.max(provision.largest_ttl))
                .as_duration();
            let waits = nodes
                .iter()
                .filter(|node| !node.votes() && !provision.never_used);
            let left = waits
                .map(|node| grace.saturating_sub(node.membership.watched_for))
                .max()
                .unwrap_or_default();
            if left.is_zero() {
                break nodes;
            }
            tracing::info!(target: "leasehold", ?left, "waiting for locks to expire that a node may have forgotten");
            sleep(left.min(LOOK)).await;
        };
        // Anew: what was still under way when the grace ended counts too.
        let settled = self.all_recollections().await?;
        let highest = nodes.iter().chain(&settled).map(|node| node.highest_token);
        let above = highest.max().unwrap_or(FencingToken::new(0));
        for (member, node) in self.members.iter().zip(nodes) {
            let Some(voter) = &member.voter else { continue };
            let Recollection { run, version, .. } = node;
            let (durable, largest_ttl) = (provision.durable, provision.largest_ttl);
            let attestation = Attestation {
                run,
                version,
                durable,
                largest_ttl,
                above,
            };
            Arc::clone(voter)
                .attest(attestation)
                .await
                .map_err(|error| {
                    refuse(
                        error.kind(),
                        format!("{}: {}", member.endpoint, error.message()),
                    )
                    .with_source(error)
                })?;
        }
        self.demand_attested(Some(provision.largest_ttl));
        Ok(self.nodes())
    }

    async fn all_recollections(&self) -> Result<Vec<Recollection>> {
        let (mut nodes, mut problems) = (Vec::new(), Vec::new());
        for (at, node) in recall_all(&self.members).await.into_iter().enumerate() {
            match node {
                Some(Ok(node)) => {
                    self.members[at].learn(&Ok(()), crate::clock::SystemClock.now());
                    nodes.push(node);
                }
                Some(Err(error)) => problems.push((at, error)),
                None => {}
            }
        }
        if problems.is_empty() {
            Ok(nodes)
        } else {
            Err(self.unavailable(&problems).with_operation("provision"))
        }
    }
}

//! [`QuorumBackend`]: the backend over a quorum of nodes.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    backend::{
        attempt::Attempt,
        capability::{Capabilities, Fairness},
        contract::LockBackend,
        inspection::{HolderRef, Inspection, NodeStatus, Pong, Revocation, RevokeOutcome},
        lease::Lease,
        request::Request,
        retry::acquire_with_retry,
    },
    error::{Error, ErrorKind, Result},
    key::LockKey,
    panics::contained,
    quorum::{
        attempt, capabilities,
        config::QuorumConfig,
        contention::AttemptHistory,
        discovery::{self, Discovery},
        inspect, maintenance,
        member::{Member, QuorumMember, is_node_failure},
        min_token::Floor,
        ping, revoke,
        state::QuorumState,
        tally::Majority,
    },
    telemetry,
    ttl::Ttl,
};

/// The time for which [`close`](LockBackend::close) waits for calls that are running.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A backend that holds each lock on a majority of an odd number of backends: Redlock.
///
/// It survives the loss of any minority of its nodes. The [module](super) describes the algorithm
/// and its guarantees. The nodes may be backends of any kind, also of different kinds.
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::{LockClient, quorum::{QuorumBackend, QuorumConfig, QuorumMember}};
/// use leasehold_local::MemoryBackend;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> leasehold_core::Result<()> {
/// let nodes = (0..3).map(|_| QuorumMember::Voting(Arc::new(MemoryBackend::new())));
/// let client = LockClient::new(QuorumBackend::open(nodes, QuorumConfig::new()).await?);
/// let guard = client.mutex("item/42").lock().await?;
/// assert!(guard.fencing_token().is_some());
/// # Ok(())
/// # }
/// ```
pub struct QuorumBackend {
    pub(super) state: Arc<QuorumState>,
    capabilities: Capabilities,
}

impl QuorumBackend {
    /// Opens a quorum of these backends. It reads the state of all nodes, and needs a majority to
    /// answer.
    ///
    /// If the nodes vote on tokens, a task maintains them from now on, so that a node that
    /// restarted is readmitted even while no lock is requested. The task ends when the backend is
    /// closed or dropped.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] unless the number of nodes is odd, and
    /// [`ErrorKind::Unavailable`] if no majority answers. The message names each node that does
    /// not.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn open(
        members: impl IntoIterator<Item = QuorumMember>,
        config: QuorumConfig,
    ) -> Result<Arc<Self>> {
        let members: Vec<_> = members.into_iter().map(Member::new).collect();
        if members.len().is_multiple_of(2) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a quorum of {} nodes is not supported; use an odd number, because an even one is no safer",
                    members.len()
                ),
            )
            .with_backend(config.scheme));
        }
        telemetry::begin_counting_nodes(
            config.scheme,
            members.iter().map(|member| &member.endpoint),
            is_node_failure,
        );
        let found = discovery::ask(&members, &config).await?;
        let has_tokens = members.iter().all(|member| member.voter.is_some());
        let capabilities = capabilities::of(&members, &config, &found);
        let state = Arc::new(QuorumState {
            majority: Majority::of(members.len()),
            floor: Floor::new(config.floor.clone()),
            has_tokens,
            epoch_required: AtomicBool::new(has_tokens && found.provisioned),
            largest_ttl: AtomicU64::new(found.largest_ttl.as_millis()),
            opened: Instant::now(),
            next_look: AtomicU64::new(0),
            maintenance_task: OnceLock::new(),
            background: TaskTracker::new(),
            members,
            config,
        });
        state.plan_look(found.provisioned && found.all_vote);
        if let Some(maintenance_task) = maintenance::start(&state) {
            drop(state.maintenance_task.set(maintenance_task));
        }
        Ok(Arc::new(Self {
            state,
            capabilities,
        }))
    }

    /// Returns the weakest promises of a quorum of these backends, however its nodes are
    /// provisioned. For a [`LazyBackend`](crate::backend::LazyBackend).
    #[must_use]
    pub fn provisional_capabilities(
        members: impl IntoIterator<Item = QuorumMember>,
        config: &QuorumConfig,
    ) -> Capabilities {
        let members: Vec<_> = members.into_iter().map(Member::new).collect();
        let found = Discovery {
            provisioned: false,
            durable: false,
            all_vote: false,
            largest_ttl: Ttl::MAX,
        };
        Capabilities {
            fairness: Fairness::None,
            ..capabilities::of(&members, config, &found)
        }
    }

    /// Returns the state of the nodes as observed by this process. Details are in the traces
    /// (target `leasehold`).
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.state.members.iter().map(Member::status).collect()
    }

    async fn attempt(&self, request: &Request, history: &AttemptHistory) -> Result<Attempt> {
        // Maintenance reads how the nodes are provisioned. It starts even if the TTL is rejected
        // below.
        maintenance::now_and_then(&self.state);
        self.state.check_ttl(request.ttl())?;
        let request = request
            .clone()
            .with_waiting(|waiting| waiting.in_order &= history.respects_order());
        attempt::attempt(&self.state, &request, history)
            .await
            .map_err(|error| error.with_backend(self.state.config.scheme))
    }
}

#[async_trait]
impl LockBackend for QuorumBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.attempt(&request.as_new_owner(), &AttemptHistory::default())
            .await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let (history, attempts) = (AttemptHistory::default(), AtomicU32::new(0));
        let (this, history, attempts) = (&self, &history, &attempts);
        let acquired = acquire_with_retry(request.clone(), |request| async move {
            // The waiter is registered under the id of the first attempt.
            let first = attempts.fetch_add(1, Ordering::Relaxed) == 0;
            let request = if first {
                request
            } else {
                request.as_new_owner()
            };
            this.attempt(&request, history).await
        })
        .await;
        // The nodes may have registered the waiter.
        if acquired.is_err() && attempts.load(Ordering::Relaxed) > 0 {
            self.state.stop_waiting_at(&request.for_node(), |node| {
                !self.state.members[node].health.is_suspect()
            });
        }
        acquired
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        inspect::inspect(&self.state, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        revoke::revoke(&self.state, holder, revocation).await
    }

    async fn ping(&self) -> Result<Pong> {
        ping::ping(&self.state).await
    }

    async fn close(&self) -> Result<()> {
        self.state.stop_maintenance();
        // Releases in the background are sent before the connections are closed.
        self.state.background.close();
        drop(tokio::time::timeout(CLOSE_TIMEOUT, self.state.background.wait()).await);
        let closings = self
            .state
            .members
            .iter()
            .map(|member| contained(member.backend.close()));
        futures_util::future::join_all(closings)
            .await
            .into_iter()
            .collect()
    }
}

impl fmt::Display for QuorumBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.capabilities.endpoint)
    }
}

impl fmt::Debug for QuorumBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuorumBackend")
            .field("members", &self.state.members)
            .field("config", &self.state.config)
            .field("epoch_required", &self.state.epoch_required)
            .finish_non_exhaustive()
    }
}

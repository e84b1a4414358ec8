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
use tokio::{task::AbortHandle, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    backend::{
        attempt::Attempt,
        capability::{Capabilities, Fairness},
        contract::LockBackend,
        inspection::{HolderRef, Inspection, NodeStatus, Pong, Revocation, RevokeOutcome},
        lease::{Lease, Released},
        request::Request,
        retry::acquire_with_retry,
    },
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    key::LockKey,
    panics::contained,
    quorum::{
        attempt::{self, NodeReply},
        capabilities,
        config::QuorumConfig,
        contention::AttemptHistory,
        discovery::{self, Discovery},
        fan_out::FanOut,
        inspect, maintenance,
        member::{Member, QuorumMember, is_node_failure},
        min_token::Floor,
        node::VoteRequirements,
        ping, revoke,
        rollback::release_until_over,
        tally::Majority,
    },
    telemetry,
    ttl::Ttl,
};

/// The time for which [`close`](LockBackend::close) waits for calls that are running.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Nodes that failed, with their errors.
pub(super) type Problems = Vec<(usize, Error)>;

/// Returns the error of a node that has not answered for this time.
pub(super) fn no_answer(silent_for: Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("no answer within {silent_for:?}"),
    )
}

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
    pub(super) members: Vec<Member>,
    pub(super) majority: Majority,
    pub(super) config: QuorumConfig,
    pub(super) floor: Floor,
    /// Whether every member can vote on tokens.
    pub(super) has_tokens: bool,
    /// Whether only nodes with a current epoch record may grant. Once set, it stays set.
    pub(super) epoch_required: AtomicBool,
    largest_ttl: AtomicU64,
    pub(super) opened: Instant,
    /// The time of the next maintenance, in nanoseconds since the backend was opened.
    pub(super) next_look: AtomicU64,
    /// The task that maintains the nodes.
    maintenance_task: OnceLock<AbortHandle>,
    capabilities: Capabilities,
    background: TaskTracker,
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
        let quorum = Arc::new(Self {
            majority: Majority::of(members.len()),
            floor: Floor::new(config.floor.clone()),
            has_tokens,
            epoch_required: AtomicBool::new(has_tokens && found.provisioned),
            largest_ttl: AtomicU64::new(found.largest_ttl.as_millis()),
            opened: Instant::now(),
            next_look: AtomicU64::new(0),
            maintenance_task: OnceLock::new(),
            capabilities: capabilities::of(&members, &config, &found),
            background: TaskTracker::new(),
            members,
            config,
        });
        quorum.plan_look(found.provisioned && found.all_vote);
        if let Some(maintenance_task) = maintenance::start(&quorum) {
            drop(quorum.maintenance_task.set(maintenance_task));
        }
        Ok(quorum)
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
        self.members.iter().map(Member::status).collect()
    }

    /// Returns the requirements on which nodes are asked now.
    pub(super) fn requirements(&self) -> VoteRequirements {
        VoteRequirements {
            epoch_required: self.epoch_required.load(Ordering::Acquire),
            largest_ttl: self.largest_ttl().as_duration(),
            token_floor: if self.has_tokens {
                self.floor.next()
            } else {
                FencingToken::new(0)
            },
        }
    }

    pub(super) fn largest_ttl(&self) -> Ttl {
        Ttl::from_millis(self.largest_ttl.load(Ordering::Acquire))
            .unwrap_or(self.config.largest_ttl)
    }

    /// Requires current epoch records from now on, because some nodes have one.
    pub(super) fn require_epoch(&self, largest_ttl: Option<Ttl>) {
        if let Some(ttl) = largest_ttl {
            self.largest_ttl.store(ttl.as_millis(), Ordering::Release);
        }
        self.epoch_required
            .store(self.has_tokens, Ordering::Release);
    }

    async fn attempt(
        self: &Arc<Self>,
        request: &Request,
        history: &AttemptHistory,
    ) -> Result<Attempt> {
        self.capabilities.check(request.mode(), request.ttl())?;
        // Maintenance reads how the nodes are provisioned. It starts even if the TTL is rejected
        // below.
        maintenance::now_and_then(self);
        self.check_ttl(request.ttl())?;
        let request = request
            .clone()
            .with_order(request.is_in_order() && history.respects_order());
        attempt::attempt(self, &request, history)
            .await
            .map_err(|error| error.with_backend(self.config.scheme))
    }

    /// Rejects a TTL above the grace period: a node that lost such a lock could grant it again.
    fn check_ttl(&self, ttl: Ttl) -> Result<()> {
        let largest = self.largest_ttl();
        if ttl <= largest {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "a TTL of {ttl} is longer than the limit of {largest} for which the nodes were provisioned; use a shorter one, \
                 or provision the nodes for it"
            ),
        )
        .with_backend(self.config.scheme))
    }

    /// Turns a node's answer into a reply.
    pub(super) fn reply(
        self: &Arc<Self>,
        node: usize,
        answer: Result<Attempt>,
        request: &Request,
    ) -> NodeReply {
        self.members[node].learn(&answer, request.now());
        match answer {
            Ok(Attempt::Granted(lease)) if self.has_tokens && lease.fencing_token().is_none() => {
                self.release_detached(lease, request);
                NodeReply::Failed(Error::new(
                    ErrorKind::UnexpectedResponse,
                    "the node granted the lock without a token",
                ))
            }
            Ok(Attempt::Granted(lease)) => NodeReply::Granted(lease),
            Ok(Attempt::Contended(contention)) => NodeReply::Refused(contention),
            Err(error) => NodeReply::Failed(error),
        }
    }

    /// Adds the withdrawal of a request that was not answered. Returns `false` if the node cannot
    /// withdraw.
    pub(super) fn withdraw(
        &self,
        node: usize,
        request: &Request,
        calls: &mut FanOut<Released>,
    ) -> bool {
        let Some(voter) = &self.members[node].voter else {
            return false;
        };
        calls.push(node, || Arc::clone(voter).withdraw(request.clone()));
        true
    }

    /// Returns the nodes that failed, and those that have not answered for `silent_for`.
    pub(super) fn problems(&self, replies: &[NodeReply], silent_for: Option<Duration>) -> Problems {
        let problem = |(node, reply): (usize, &NodeReply)| match reply {
            NodeReply::Failed(error) => Some((node, error.clone())),
            NodeReply::Pending => silent_for.map(|silent| (node, no_answer(silent))),
            _ => None,
        };
        replies.iter().enumerate().filter_map(problem).collect()
    }

    /// Returns an error such as `3 of 5 unavailable: …`.
    pub(super) fn unavailable(&self, problems: &Problems) -> Error {
        discovery::unavailable(&self.members, problems, self.config.scheme)
    }

    /// Drives calls to completion in the background.
    pub(super) fn finish<T: Send + 'static>(
        &self,
        mut calls: FanOut<T>,
        mut ended: impl FnMut((usize, Result<T>)) + Send + 'static,
    ) {
        if !calls.is_empty() {
            self.spawn(async move {
                std::future::poll_fn(|cx| {
                    calls.poll(cx, |node, outcome| ended((node, outcome)));
                    if calls.is_empty() {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                })
                .await;
            });
        }
    }

    /// Drives calls to completion in the background, as [`finish`](Self::finish) does, and records
    /// nodes that are late. `ended` must record every answer.
    pub(super) fn finish_within<T: Send + 'static>(
        self: &Arc<Self>,
        mut calls: FanOut<T>,
        timeout: Duration,
        mut ended: impl FnMut((usize, Result<T>)) + Send + 'static,
    ) {
        if calls.is_empty() {
            return;
        }
        let this = Arc::clone(self);
        self.spawn(async move {
            let mut timer = std::pin::pin!(tokio::time::sleep(timeout));
            let mut over = false;
            std::future::poll_fn(|cx| {
                calls.poll(cx, |node, outcome| ended((node, outcome)));
                if calls.is_empty() {
                    return std::task::Poll::Ready(());
                }
                if !over && timer.as_mut().poll(cx).is_ready() {
                    over = true;
                    for node in calls.nodes() {
                        this.members[node].late(timeout);
                    }
                }
                std::task::Poll::Pending
            })
            .await;
        });
    }

    /// Releases a lease in the background until that succeeds or the lease expires.
    pub(super) fn release_detached(&self, lease: Arc<dyn Lease>, request: &Request) {
        self.spawn(release_until_over(lease, request.clone()));
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.background.spawn(work));
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
            self.stop_waiting_at(&request.for_node(), |node| {
                !self.members[node].health.is_suspect()
            });
        }
        acquired
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        inspect::inspect(self, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        revoke::revoke(self, holder, revocation).await
    }

    async fn ping(&self) -> Result<Pong> {
        ping::ping(self).await
    }

    async fn close(&self) -> Result<()> {
        self.stop_maintenance();
        // Releases in the background are sent before the connections are closed.
        self.background.close();
        drop(tokio::time::timeout(CLOSE_TIMEOUT, self.background.wait()).await);
        let closings = self
            .members
            .iter()
            .map(|member| contained(member.backend.close()));
        futures_util::future::join_all(closings)
            .await
            .into_iter()
            .collect()
    }
}

impl QuorumBackend {
    /// Removes the registration of a waiter on these nodes.
    pub(super) fn stop_waiting_at(&self, request: &Request, at: impl Fn(usize) -> bool) {
        let mut withdrawals = FanOut::with_capacity(self.members.len());
        for (node, member) in self.members.iter().enumerate() {
            if let Some(voter) = member.voter.as_ref().filter(|_| at(node)) {
                withdrawals.push(node, || Arc::clone(voter).stop_waiting(request.clone()));
            }
        }
        withdrawals.send(|_, _| ());
        self.finish(withdrawals, |_| ());
    }
}

impl QuorumBackend {
    fn stop_maintenance(&self) {
        if let Some(maintenance_task) = self.maintenance_task.get() {
            maintenance_task.abort();
        }
    }
}

impl Drop for QuorumBackend {
    fn drop(&mut self) {
        self.stop_maintenance();
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
            .field("members", &self.members)
            .field("config", &self.config)
            .field("epoch_required", &self.epoch_required)
            .finish_non_exhaustive()
    }
}

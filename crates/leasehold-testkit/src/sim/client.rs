//! [`SimBackend`]: the client of one simulated node.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use leasehold_core::{
    Capabilities, Error, ErrorKind, Fencing, FencingToken, HolderRef, Inspection, LockKey,
    LossDetection, Mode, Released, Restart, Result, Revocation, RevokeOutcome, WaiterNotification,
    backend::{Attempt, BoxFuture, Contention, LockBackend, Request},
    quorum::{EpochRecord, NodeState, QuorumNode, TokenVote, VoteRequirements, Watched},
};

use super::{
    lease::{REPLY_TIMEOUT, SimLease, release},
    link::Link,
    memory::AcquireReply,
    network::Network,
    node::SimNode,
    node_bug::NodeBug,
};

/// The client of one simulated node, created by [`Network::connect`].
///
/// ```
/// use leasehold_core::LockClient;
/// use leasehold_testkit::sim::{Network, SimClock, SimNode};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> leasehold_core::Result<()> {
/// let node = SimNode::new(SimClock::new());
/// let client = LockClient::new(Network::new(42).connect(&node));
/// let guard = client.mutex("item/42").lock().await?;
/// assert!(node.holds());
/// # guard.release().await?; Ok(()) }
/// ```
pub struct SimBackend {
    link: Link,
    /// The connection on which the node has voted last.
    voted_on: Mutex<Option<u64>>,
}

impl Network {
    /// Connects a new client to a node.
    #[must_use]
    pub fn connect(self: &Arc<Self>, node: &Arc<SimNode>) -> Arc<SimBackend> {
        SimBackend::new(Link::new(Arc::clone(self), Arc::clone(node)))
    }
}

impl SimBackend {
    fn new(link: Link) -> Arc<Self> {
        Arc::new(Self {
            link,
            voted_on: Mutex::default(),
        })
    }

    /// Returns the link to the node, which a test can cut.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    fn has_voted_on(&self, connection: Option<u64>) -> bool {
        connection.is_some()
            && *self.voted_on.lock().unwrap_or_else(PoisonError::into_inner) == connection
    }

    /// Releases the lock of an attempt without a reply in the background. Retries until the node
    /// confirms the release or the lock has expired.
    fn undo(&self, request: Request) {
        let (link, begun) = (self.link.clone(), request.now());
        drop(tokio::spawn(async move {
            while request.now().since(begun) < request.ttl().as_duration() {
                if release(&link, request.clone()).await.is_ok() {
                    return;
                }
                tokio::time::sleep(REPLY_TIMEOUT / 4).await;
            }
        }));
    }

    /// Makes one attempt, with the `requirements` of a quorum if it is one of its votes.
    async fn attempt(
        &self,
        request: Request,
        requirements: Option<VoteRequirements>,
    ) -> Result<Attempt> {
        let mut sent = request.now();
        let wake = self.wake();
        let asked = request.clone();
        let token_floor = requirements.map_or(FencingToken::new(0), |requirements| {
            requirements.token_floor
        });
        let bug = self.link.node().bug();
        let connection = self.link.connection();
        let voted =
            bug == Some(NodeBug::VoteCheckedOncePerConnection) && self.has_voted_on(connection);
        let answer = self
            .link
            .call(REPLY_TIMEOUT, move |handler| {
                let may =
                    voted || requirements.is_none_or(|requirements| handler.meets(&requirements));
                may.then(|| handler.memory.acquire(&asked, token_floor, handler.now))
            })
            .await;
        if matches!(answer, Ok(Some(_))) {
            *self.voted_on.lock().unwrap_or_else(PoisonError::into_inner) = connection;
        }
        if bug == Some(NodeBug::DeadlineFromAnswer) {
            sent = request.now();
        }
        match answer {
            Ok(Some(AcquireReply::Granted(token))) => Ok(Attempt::Granted(SimLease::new(
                self.link.clone(),
                request,
                token,
                sent,
            ))),
            Ok(Some(AcquireReply::Held(_))) if bug == Some(NodeBug::RefusalCounts) => Ok(
                Attempt::Granted(SimLease::new(self.link.clone(), request, token_floor, sent)),
            ),
            Ok(Some(AcquireReply::Held(left))) => Ok(Attempt::Contended(Contention {
                retry_after: Some(left),
                last_token: None,
                wake: Some(wake),
            })),
            Ok(None) => Err(Error::new(
                ErrorKind::Unavailable,
                "the node has restarted and may not vote yet",
            )),
            Err(error) => {
                if error.kind() == ErrorKind::Indeterminate {
                    self.undo(request);
                }
                Err(error)
            }
        }
    }

    /// Returns a future that completes when a lock of the node may have become free, unless the
    /// notification is lost.
    fn wake(&self) -> BoxFuture<'static, ()> {
        let (mut freed, link) = (self.link.node().next_freed(), self.link.clone());
        Box::pin(async move {
            loop {
                freed.await;
                freed = link.node().next_freed();
                if let Some(delay) = link.network().travel() {
                    tokio::time::sleep(delay).await;
                    return;
                }
            }
        })
    }
}

#[async_trait]
impl LockBackend for SimBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("simulated");
        capabilities.endpoint = self.to_string();
        capabilities.fencing = Fencing::UntilDataLoss;
        capabilities.waiter_notification = WaiterNotification::Pushed;
        capabilities.loss_detection = LossDetection::Renewal;
        capabilities.restart = Restart::AsPersisted;
        capabilities.inspect = true;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.attempt(request, None).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        let asked = key.clone();
        let (holder, token, now) = self
            .link
            .call(REPLY_TIMEOUT, move |handler| {
                let (holder, token) = handler.memory.holder(&asked, handler.now);
                (holder, token, handler.now)
            })
            .await?;
        let holders = holder.map(|holder| {
            let mut listed = HolderRef::new(key.clone(), holder.owner.to_hex());
            listed.mode = Some(Mode::Exclusive);
            listed.owner = Some(holder.owner);
            listed.label = holder.label;
            listed.token = token;
            listed.expires_in = Some(holder.until.since(now));
            listed
        });
        Ok(Inspection::new(holders.into_iter().collect(), Vec::new()))
    }

    async fn revoke(&self, _: &HolderRef, _: Revocation) -> Result<RevokeOutcome> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "locks of simulated nodes cannot be revoked; crash the node instead",
        ))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl QuorumNode for SimBackend {
    async fn request_vote(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
    ) -> Result<Attempt> {
        self.attempt(request, Some(requirements)).await
    }

    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
        token: FencingToken,
    ) -> Result<TokenVote> {
        let vote = self.link.call(REPLY_TIMEOUT, move |handler| {
            handler.meets(&requirements).then(|| {
                handler
                    .memory
                    .raise(&request, token, handler.now, handler.bug)
            })
        });
        vote.await?.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the node has restarted and may not vote yet",
            )
        })
    }

    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        release(&self.link, request).await
    }

    async fn read_state(self: Arc<Self>, watched: Option<Watched>) -> Result<NodeState> {
        let name = self.link.network().draw();
        self.link
            .call(REPLY_TIMEOUT, move |handler| {
                handler.watch(watched.as_ref(), name);
                handler.read_state()
            })
            .await
    }

    async fn record_epoch(self: Arc<Self>, record: EpochRecord) -> Result<()> {
        let refused = self
            .link
            .call(REPLY_TIMEOUT, move |handler| {
                if handler.run_name() != record.incarnation || handler.version() != record.version {
                    return Some(ErrorKind::Unavailable);
                }
                if record.durable && !handler.durable {
                    return Some(ErrorKind::Unsupported);
                }
                handler.memory.record_epoch(record.clone());
                None
            })
            .await?;
        refused.map_or(Ok(()), |kind| {
            Err(Error::new(
                kind,
                "the node has restarted or changed since the state that is attested",
            ))
        })
    }
}

impl fmt::Display for SimBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated:")
    }
}

impl fmt::Debug for SimBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimBackend").finish_non_exhaustive()
    }
}

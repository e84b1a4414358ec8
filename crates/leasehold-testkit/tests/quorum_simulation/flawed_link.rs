//! Flawed clients, which the simulation must find: a client that does not release partial grants,
//! and clients that check or retry nodes too seldom.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use leasehold_core::{
    Capabilities, Deadline, FencingToken, HolderRef, Inspection, LockKey, Released, Result,
    Revocation, RevokeOutcome,
    backend::{Attempt, Contention, KeepAlive, Lease, LockBackend, Request},
    quorum::{EpochRecord, NodeState, QuorumNode, TokenVote, VoteRequirements, Watched},
};
use leasehold_testkit::sim::SimBackend;
use tokio::time::Instant;

use crate::world::Flaw;

/// A client's connection to a node that drops some requests, depending on the flaw:
///
/// - releases of attempts that fewer than a majority of the nodes granted
/// - queries of the node's state by a client that requests no lock
/// - retries on further nodes between a grant and its renewal
#[derive(Debug)]
pub(crate) struct FlawedLink {
    inner: Arc<SimBackend>,
    nodes: usize,
    grants: Arc<Grants>,
    flaw: Option<Flaw>,
}

/// The number of nodes that granted each acquisition. The key is the part of the id that all
/// attempts of an acquisition have in common.
#[derive(Debug, Default)]
struct Grants(Mutex<HashMap<u128, usize>>, Mutex<Asked>);

/// The last request of the client for a lock: its time and its acquisition.
#[derive(Debug, Default)]
struct Asked {
    at: Option<Instant>,
    owner: u128,
}

/// The time after a request in which a flawed client checks nodes and does not retry them.
const SOON: Duration = Duration::from_secs(2);

impl FlawedLink {
    /// Wraps all connections of one client.
    pub(crate) fn all(links: Vec<Arc<SimBackend>>, flaw: Option<Flaw>) -> Vec<Arc<Self>> {
        let (nodes, grants) = (links.len(), Arc::<Grants>::default());
        // The client checks its nodes when it is opened.
        grants.1.lock().unwrap().at = Some(Instant::now());
        links
            .into_iter()
            .map(|inner| {
                Arc::new(Self {
                    inner,
                    nodes,
                    grants: Arc::clone(&grants),
                    flaw,
                })
            })
            .collect()
    }

    fn granted(&self, request: &Request) {
        *self
            .grants
            .0
            .lock()
            .unwrap()
            .entry(request.owner().as_u128() >> 16)
            .or_default() += 1;
    }

    /// Returns whether the request is a new one and not a retry on further nodes, and whether the
    /// last new request was made a moment ago.
    fn asks(&self, request: &Request) -> (bool, bool) {
        let mut asked = self.grants.1.lock().unwrap();
        let owner = request.owner().as_u128();
        let again = owner != asked.owner && owner >> 16 == asked.owner >> 16;
        if !again {
            *asked = Asked {
                at: Some(Instant::now()),
                owner,
            };
        }
        (!again, asked.at.is_some_and(|at| at.elapsed() < SOON))
    }

    fn has_majority(&self, request: &Request) -> bool {
        if !matches!(self.flaw, Some(Flaw::PartialGrantsNotReleased)) {
            return true;
        }
        let grants = self.grants.0.lock().unwrap();
        grants
            .get(&(request.owner().as_u128() >> 16))
            .is_some_and(|grants| *grants > self.nodes / 2)
    }
}

impl fmt::Display for FlawedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl LockBackend for FlawedLink {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        Arc::clone(&self.inner).try_acquire(request).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.inner.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.inner.revoke(holder, revocation).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl QuorumNode for FlawedLink {
    async fn request_vote(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
    ) -> Result<Attempt> {
        if let ((false, true), Some(Flaw::NodesNotRetriedBeforeRenewal)) =
            (self.asks(&request), self.flaw)
        {
            return Ok(Attempt::Contended(Contention {
                retry_after: None,
                last_token: None,
                wake: None,
            }));
        }
        match Arc::clone(&self.inner)
            .request_vote(request.clone(), requirements)
            .await?
        {
            Attempt::Granted(inner) => {
                self.granted(&request);
                Ok(Attempt::Granted(Arc::new(FlawedLease {
                    link: self,
                    request,
                    inner,
                })))
            }
            contended => Ok(contended),
        }
    }

    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
        token: FencingToken,
    ) -> Result<TokenVote> {
        Arc::clone(&self.inner)
            .raise_token(request, requirements, token)
            .await
    }

    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        if self.has_majority(&request) {
            Arc::clone(&self.inner).withdraw(request).await
        } else {
            Ok(Released::AlreadyLost)
        }
    }

    async fn read_state(self: Arc<Self>, watched: Option<Watched>) -> Result<NodeState> {
        let asked = self.grants.1.lock().unwrap().at;
        if matches!(self.flaw, Some(Flaw::NodesCheckedOnlyByAcquisitions))
            && asked.is_none_or(|at| at.elapsed() >= SOON)
        {
            // The client does not query the node, so its view of the node does not change.
            return std::future::pending().await;
        }
        Arc::clone(&self.inner).read_state(watched).await
    }

    async fn record_epoch(self: Arc<Self>, record: EpochRecord) -> Result<()> {
        Arc::clone(&self.inner).record_epoch(record).await
    }
}

#[derive(Debug)]
struct FlawedLease {
    link: Arc<FlawedLink>,
    request: Request,
    inner: Arc<dyn Lease>,
}

#[async_trait]
impl Lease for FlawedLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.inner.fencing_token()
    }

    fn valid_until(&self) -> Deadline {
        self.inner.valid_until()
    }

    fn keep_alive(&self) -> KeepAlive {
        self.inner.keep_alive()
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        Arc::clone(&self.inner).renew().await
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        if self.link.has_majority(&self.request) {
            Arc::clone(&self.inner).release().await
        } else {
            Ok(Released::AlreadyLost)
        }
    }
}

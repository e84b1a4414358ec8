//! Wrong variants of what a client does: what an attempt got that did not win is proxied until it
//! expires; nodes are looked after, or asked again, too seldom.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use leasehold_core::{
    Attempt, Capabilities, Contention, Deadline, FencingToken, HolderRef, Inspection, KeepAlive,
    Lease, LockBackend, LockKey, Released, Request, Result, Revocation, RevokeOutcome,
    quorum::{Attestation, QuorumNode, Recollection, Terms, TokenVote, Watched},
};
use leasehold_testkit::sim::SimBackend;
use tokio::time::Instant;

use crate::world::Flaw;

/// A client's connection to a node over which something does not go, by the flaw: releases of
/// attempts that fewer than a majority of the nodes granted, questions about the node's memory of a
/// client that asks for no lock, or requests to hold again before a renewal.
#[derive(Debug)]
pub(crate) struct FlawedLink {
    inner: Arc<SimBackend>,
    nodes: usize,
    grants: Arc<Grants>,
    flaw: Option<Flaw>,
}

/// How many nodes granted each acquisition, by what all of its names have in common.
#[derive(Debug, Default)]
struct Grants(Mutex<HashMap<u128, usize>>, Mutex<Asked>);

/// When the client last asked for a lock, and who asked.
#[derive(Debug, Default)]
struct Asked {
    at: Option<Instant>,
    owner: u128,
}

/// For so long after a request a client looks after nodes, and asks no node again.
const SOON: Duration = Duration::from_secs(2);

impl FlawedLink {
    /// The connections of one client.
    pub(crate) fn all(links: Vec<Arc<SimBackend>>, flaw: Option<Flaw>) -> Vec<Arc<Self>> {
        let (nodes, grants) = (links.len(), Arc::<Grants>::default());
        // When it is opened, all may ask.
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

    /// Whether it is a new request, and not one to hold again; and whether another was made a
    /// moment ago.
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

    fn has_won(&self, request: &Request) -> bool {
        if !matches!(self.flaw, Some(Flaw::PartialWinsKept)) {
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
    async fn request_vote(self: Arc<Self>, request: Request, terms: Terms) -> Result<Attempt> {
        if let ((false, true), Some(Flaw::NothingAskedBeforeRenewal)) =
            (self.asks(&request), self.flaw)
        {
            return Ok(Attempt::Contended(Contention {
                retry_after: None,
                last_token: None,
                wake: None,
            }));
        }
        match Arc::clone(&self.inner)
            .request_vote(request.clone(), terms)
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
        terms: Terms,
        token: FencingToken,
    ) -> Result<TokenVote> {
        Arc::clone(&self.inner)
            .raise_token(request, terms, token)
            .await
    }

    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        if self.has_won(&request) {
            Arc::clone(&self.inner).withdraw(request).await
        } else {
            Ok(Released::AlreadyLost)
        }
    }

    async fn recall(self: Arc<Self>, watched: Option<Watched>) -> Result<Recollection> {
        let asked = self.grants.1.lock().unwrap().at;
        if matches!(self.flaw, Some(Flaw::OnlyAcquisitionsLookAfter))
            && asked.is_none_or(|at| at.elapsed() >= SOON)
        {
            // As if it had not been asked: the node is as well as it was.
            return std::future::pending().await;
        }
        Arc::clone(&self.inner).recall(watched).await
    }

    async fn attest(self: Arc<Self>, attestation: Attestation) -> Result<()> {
        Arc::clone(&self.inner).attest(attestation).await
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
        if self.link.has_won(&self.request) {
            Arc::clone(&self.inner).release().await
        } else {
            Ok(Released::AlreadyLost)
        }
    }
}

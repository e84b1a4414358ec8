//! A wrong variant: what an attempt got that did not win is kept until it expires.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use leasehold_core::{
    Attempt, Broken, Capabilities, Deadline, FencingToken, HolderRef, Inspection, Lease, LockBackend, LockKey,
    Released, Request, Result, TokenVote, Upkeep,
    quorum::{Attestation, QuorumNode, Recollection, Watched},
};
use leasehold_testkit::sim::SimBackend;

/// A client's connection to a node over which releases of attempts do not go that fewer than a majority of the nodes granted.
#[derive(Debug)]
pub(crate) struct Keeping {
    inner: Arc<SimBackend>,
    nodes: usize,
    grants: Arc<Grants>,
}

/// How many nodes granted each acquisition, by what all of its names have in common.
#[derive(Debug, Default)]
struct Grants(Mutex<HashMap<u128, usize>>);

impl Keeping {
    /// The connections of one client.
    pub(crate) fn all(links: Vec<Arc<SimBackend>>) -> Vec<Arc<Self>> {
        let (nodes, grants) = (links.len(), Arc::<Grants>::default());
        links.into_iter().map(|inner| Arc::new(Self { inner, nodes, grants: Arc::clone(&grants) })).collect()
    }

    fn granted(&self, request: &Request) {
        *self.grants.0.lock().unwrap().entry(request.owner().as_u128() >> 16).or_default() += 1;
    }

    fn has_won(&self, request: &Request) -> bool {
        let grants = self.grants.0.lock().unwrap();
        grants.get(&(request.owner().as_u128() >> 16)).is_some_and(|grants| *grants > self.nodes / 2)
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl LockBackend for Keeping {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        match Arc::clone(&self.inner).try_acquire(request.clone()).await? {
            Attempt::Granted(inner) => {
                self.granted(&request);
                Ok(Attempt::Granted(Arc::new(KeptLease { link: self, request, inner })))
            }
            contended => Ok(contended),
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.inner.inspect(key).await
    }

    async fn break_lock(&self, holder: &HolderRef, now: bool) -> Result<Broken> {
        self.inner.break_lock(holder, now).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn quorum_node(self: Arc<Self>) -> Option<Arc<dyn QuorumNode>> {
        Some(self)
    }
}

#[async_trait]
impl QuorumNode for Keeping {
    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        if self.has_won(&request) { Arc::clone(&self.inner).withdraw(request).await } else { Ok(Released::AlreadyLost) }
    }

    async fn recall(self: Arc<Self>, watched: Option<Watched>) -> Result<Recollection> {
        Arc::clone(&self.inner).recall(watched).await
    }

    async fn attest(self: Arc<Self>, attestation: Attestation) -> Result<()> {
        Arc::clone(&self.inner).attest(attestation).await
    }
}

#[derive(Debug)]
struct KeptLease {
    link: Arc<Keeping>,
    request: Request,
    inner: Arc<dyn Lease>,
}

#[async_trait]
impl Lease for KeptLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.inner.fencing_token()
    }

    fn valid_until(&self) -> Deadline {
        self.inner.valid_until()
    }

    fn upkeep(&self) -> Upkeep {
        self.inner.upkeep()
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        Arc::clone(&self.inner).renew().await
    }

    async fn raise_token(self: Arc<Self>, token: FencingToken) -> Result<TokenVote> {
        Arc::clone(&self.inner).raise_token(token).await
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        if self.link.has_won(&self.request) {
            Arc::clone(&self.inner).release().await
        } else {
            Ok(Released::AlreadyLost)
        }
    }
}

//! A node of a quorum that can be told to fail.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Attempt, Broken, Capabilities, Error, ErrorKind, HolderRef, Inspection, LockBackend, LockKey, Request, Result,
    TestClock, async_trait, quorum::QuorumNode,
};
use leasehold_local::MemoryBackend;

/// How long a failure takes: a majority of others has answered by then.
pub(crate) const FAILS_AFTER: Duration = Duration::from_millis(5);

/// Memory, behind a way that may be cut.
#[derive(Debug)]
pub(crate) struct Flaky {
    name: &'static str,
    inner: Arc<MemoryBackend>,
    pub(crate) down: AtomicBool,
    /// Votes on tokens, as memory does.
    votes: bool,
}

impl Flaky {
    pub(crate) fn new(name: &'static str, clock: Arc<TestClock>, votes: bool) -> Arc<Self> {
        Arc::new(Self { name, inner: Arc::new(MemoryBackend::with_clock(clock)), down: AtomicBool::new(false), votes })
    }

    async fn way(&self) -> Result<()> {
        if self.down.load(SeqCst) {
            tokio::time::sleep(FAILS_AFTER).await;
            return Err(Error::new(ErrorKind::Unavailable, "told to fail"));
        }
        Ok(())
    }
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LockBackend for Flaky {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.way().await?;
        Arc::clone(&self.inner).try_acquire(request).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn leasehold_core::Lease>> {
        self.way().await?;
        Arc::clone(&self.inner).acquire(request).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.way().await?;
        self.inner.inspect(key).await
    }

    async fn break_lock(&self, holder: &HolderRef, now: bool) -> Result<Broken> {
        self.way().await?;
        self.inner.break_lock(holder, now).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn quorum_node(self: Arc<Self>) -> Option<Arc<dyn QuorumNode>> {
        if self.votes { Arc::clone(&self.inner).quorum_node() } else { None }
    }
}

//! A quorum node that can be made to fail, or to answer late.

use std::{
    fmt,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Capabilities, Error, ErrorKind, FencingToken, HolderRef, Inspection, LockKey, Pong, Released,
    Result, Revocation, RevokeOutcome, TestClock,
    backend::{
        Attempt, Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request, async_trait,
    },
    quorum::{
        EpochRecord, NodeState, QuorumMember, QuorumNode, TokenVote, VoteRequirements, Watched,
    },
};
use leasehold_local::MemoryBackend;
use tokio::sync::Semaphore;

/// The time that a failure takes. A majority of the other nodes has answered by then.
pub(crate) const FAILS_AFTER: Duration = Duration::from_millis(5);

/// An in-memory backend behind a connection that can fail.
#[derive(Debug)]
pub(crate) struct Flaky {
    name: &'static str,
    inner: Arc<MemoryBackend>,
    pub(crate) down: AtomicBool,
    pub(crate) panics: AtomicBool,
    /// Whether the node votes on tokens, as the in-memory backend does.
    votes: bool,
    /// The number of renewals that take effect at once but are answered later, each one when
    /// `late_answers` has a permit. The answer is that it came too late, as from a lease whose
    /// deadline has passed.
    pub(crate) late_renewals: AtomicUsize,
    pub(crate) late_answers: Semaphore,
    /// The time in milliseconds that a renewal takes.
    pub(crate) renewal_takes: AtomicU64,
}

impl Flaky {
    pub(crate) fn new(name: &'static str, clock: Arc<TestClock>, votes: bool) -> Arc<Self> {
        Arc::new(Self {
            name,
            inner: Arc::new(MemoryBackend::with_clock(clock)),
            down: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            votes,
            late_renewals: AtomicUsize::new(0),
            late_answers: Semaphore::new(0),
            renewal_takes: AtomicU64::new(0),
        })
    }

    /// Returns it as a member of a quorum.
    pub(crate) fn member(self: &Arc<Self>) -> QuorumMember {
        let node = Arc::clone(self);
        if self.votes {
            QuorumMember::Voting(node)
        } else {
            QuorumMember::Plain(node)
        }
    }

    fn panic_if_told(&self) {
        if self.panics.load(SeqCst) {
            // Suppresses the message of each panic.
            resume_unwind(Box::new("made to panic"));
        }
    }

    async fn way(&self) -> Result<()> {
        self.panic_if_told();
        if self.down.load(SeqCst) {
            tokio::time::sleep(FAILS_AFTER).await;
            return Err(Error::new(ErrorKind::Unavailable, "made to fail"));
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
        Ok(match Arc::clone(&self.inner).try_acquire(request).await? {
            Attempt::Granted(inner) => Attempt::Granted(Arc::new(FlakyLease { node: self, inner })),
            contended => contended,
        })
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        self.way().await?;
        Arc::clone(&self.inner).acquire(request).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.way().await?;
        self.inner.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.way().await?;
        self.inner.revoke(holder, revocation).await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        self.way().await?;
        Arc::clone(&self.inner).read_record(read).await
    }

    async fn ping(&self) -> Result<Pong> {
        self.way().await?;
        self.inner.ping().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl QuorumNode for Flaky {
    async fn request_vote(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
    ) -> Result<Attempt> {
        self.way().await?;
        Ok(
            match Arc::clone(&self.inner)
                .request_vote(request, requirements)
                .await?
            {
                Attempt::Granted(inner) => {
                    Attempt::Granted(Arc::new(FlakyLease { node: self, inner }))
                }
                contended => contended,
            },
        )
    }

    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
        token: FencingToken,
    ) -> Result<TokenVote> {
        self.panic_if_told();
        Arc::clone(&self.inner)
            .raise_token(request, requirements, token)
            .await
    }

    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        Arc::clone(&self.inner).withdraw(request).await
    }

    async fn stop_waiting(self: Arc<Self>, request: Request) -> Result<()> {
        Arc::clone(&self.inner).stop_waiting(request).await
    }

    async fn read_state(self: Arc<Self>, watched: Option<Watched>) -> Result<NodeState> {
        Arc::clone(&self.inner).read_state(watched).await
    }

    async fn record_epoch(self: Arc<Self>, record: EpochRecord) -> Result<()> {
        Arc::clone(&self.inner).record_epoch(record).await
    }
}

#[derive(Debug)]
struct FlakyLease {
    node: Arc<Flaky>,
    inner: Arc<dyn Lease>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Lease for FlakyLease {
    forward_lease_state!(inner);

    async fn renew(self: Arc<Self>) -> Result<()> {
        self.node.panic_if_told();
        let late = self
            .node
            .late_renewals
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .is_ok();
        let takes = self.node.renewal_takes.load(SeqCst);
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        Arc::clone(&self.inner).renew().await?;
        if late {
            self.node
                .late_answers
                .acquire()
                .await
                .expect("it is never closed")
                .forget();
            return Err(Error::new(
                ErrorKind::Lost,
                "the renewal's answer came after the deadline",
            ));
        }
        Ok(())
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        self.node.panic_if_told();
        Arc::clone(&self.inner).release().await
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        self.node.way().await?;
        Arc::clone(&self.inner).write_record(write).await
    }
}

//! An in-memory backend that is watched, and can be made to misbehave.

use std::{
    fmt,
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Capabilities, Deadline, Error, ErrorKind, FencingToken, HolderRef, Inspection, LockKey, Pong,
    Released, Result, Revocation, RevokeOutcome, TestClock, Timestamp, Ttl,
    backend::{Attempt, KeepAlive, Lease, LockBackend, Request, SessionId, async_trait},
};
use leasehold_local::MemoryBackend;
use tokio::sync::Notify;

/// The watched backend; see the module.
#[derive(Debug)]
pub(crate) struct Spy {
    inner: Arc<MemoryBackend>,
    pub(crate) watched: Arc<Watched>,
}

/// The observed calls, and the misbehaviour to show.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) acquires: AtomicUsize,
    pub(crate) tries: AtomicUsize,
    /// For each acquire, whether it was yielding.
    pub(crate) yielding: Mutex<Vec<bool>>,
    pub(crate) renewals: Mutex<Vec<Timestamp>>,
    pub(crate) releases: AtomicUsize,
    /// If set, renewals fail.
    pub(crate) renewals_fail: AtomicBool,
    /// The duration of a renewal's round trip.
    pub(crate) round_trip: Mutex<Duration>,
    /// The number of renewals that panic.
    pub(crate) panics: AtomicUsize,
    /// The time for which the machine is suspended during a renewal.
    pub(crate) suspended: Mutex<Option<(Arc<TestClock>, Duration)>>,
    /// If set, releases take effect with their first poll, and are answered when `answer` is
    /// notified.
    pub(crate) answers_wait: AtomicBool,
    pub(crate) answer: Notify,
    /// If set, releases panic.
    pub(crate) releases_panic: AtomicBool,
    /// The key whose releases fail.
    pub(crate) failing_release: Mutex<Option<&'static str>>,
    /// The number of times that a release yields before it takes effect.
    pub(crate) releases_yield: AtomicUsize,
    pub(crate) unordered: AtomicBool,
    /// If set, acquisitions get no answer.
    pub(crate) acquisitions_hang: AtomicBool,
    /// The key whose acquisitions fail with this kind of error, or panic without one.
    pub(crate) failing: Mutex<Option<(&'static str, Option<ErrorKind>)>>,
    /// The session to which all leases belong.
    pub(crate) session: Mutex<Option<SessionId>>,
    /// The longest TTL, if it is not memory's.
    pub(crate) max_ttl: Mutex<Option<Ttl>>,
    /// The number of renewals whose answer is that the lock is lost.
    pub(crate) renewals_lost: AtomicUsize,
    /// The number of releases that fail.
    pub(crate) releases_fail: AtomicUsize,
    /// The deadline of all leases, if renewals of their session have moved it.
    pub(crate) session_deadline: Mutex<Option<Deadline>>,
    /// The number of times that an attempt yields after it took effect.
    pub(crate) tries_yield: AtomicUsize,
    /// The number of renewals that were answered after a round trip.
    pub(crate) renewals_answered: AtomicUsize,
}

/// Takes one from a number of events, if any is left.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
        .is_ok()
}

impl Watched {
    async fn misbehave_if_told(&self, request: &Request) -> Result<()> {
        let failing = *self.failing.lock().unwrap();
        if let Some((key, kind)) = failing
            && request.key().as_str() == Some(key)
        {
            let Some(kind) = kind else {
                // Suppresses the message of each panic.
                resume_unwind(Box::new("made to panic"));
            };
            return Err(Error::new(kind, "made to fail"));
        }
        if self.acquisitions_hang.load(SeqCst) {
            request.cancelled().await;
            return Err(Error::new(ErrorKind::Cancelled, "no answer"));
        }
        Ok(())
    }
}

impl Spy {
    pub(crate) fn new(inner: MemoryBackend) -> Self {
        Self {
            inner: Arc::new(inner),
            watched: Arc::default(),
        }
    }

    fn watch(&self, lease: Arc<dyn Lease>, request: &Request) -> Arc<dyn Lease> {
        let session = *self.watched.session.lock().unwrap();
        Arc::new(SpyLease {
            inner: lease,
            request: request.clone(),
            watched: Arc::clone(&self.watched),
            session,
        })
    }
}

impl fmt::Display for Spy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("spy")
    }
}

#[async_trait]
impl LockBackend for Spy {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        capabilities.pipelined_release = !self.watched.unordered.load(SeqCst);
        if let Some(max_ttl) = *self.watched.max_ttl.lock().unwrap() {
            capabilities.max_ttl = max_ttl;
        }
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.watched.tries.fetch_add(1, SeqCst);
        self.watched.misbehave_if_told(&request).await?;
        self.watched
            .yielding
            .lock()
            .unwrap()
            .push(request.waiting().yields);
        let attempt = Arc::clone(&self.inner).try_acquire(request.clone()).await?;
        for _ in 0..self.watched.tries_yield.load(SeqCst) {
            tokio::task::yield_now().await;
        }
        Ok(match attempt {
            Attempt::Granted(lease) => Attempt::Granted(self.watch(lease, &request)),
            contended => contended,
        })
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        self.watched.acquires.fetch_add(1, SeqCst);
        self.watched.misbehave_if_told(&request).await?;
        self.watched
            .yielding
            .lock()
            .unwrap()
            .push(request.waiting().yields);
        Ok(self.watch(
            Arc::clone(&self.inner).acquire(request.clone()).await?,
            &request,
        ))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.inner.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.inner.revoke(holder, revocation).await
    }

    async fn ping(&self) -> Result<Pong> {
        self.inner.ping().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[derive(Debug)]
struct SpyLease {
    inner: Arc<dyn Lease>,
    request: Request,
    watched: Arc<Watched>,
    session: Option<SessionId>,
}

#[async_trait]
impl Lease for SpyLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.inner.fencing_token()
    }

    fn valid_until(&self) -> Deadline {
        let moved = *self.watched.session_deadline.lock().unwrap();
        moved.unwrap_or_else(|| self.inner.valid_until())
    }

    fn keep_alive(&self) -> KeepAlive {
        self.session.map_or(KeepAlive::PerLease, KeepAlive::Session)
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        self.watched
            .renewals
            .lock()
            .unwrap()
            .push(self.request.now());
        if self.watched.renewals_fail.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "made to fail"));
        }
        if take_one(&self.watched.renewals_lost) {
            return Err(Error::new(ErrorKind::Lost, "made to be lost"));
        }
        assert!(!take_one(&self.watched.panics), "made to panic");
        let round_trip = *self.watched.round_trip.lock().unwrap();
        if !round_trip.is_zero() {
            tokio::time::sleep(round_trip / 2).await;
            let renewed = Arc::clone(&self.inner).renew().await;
            tokio::time::sleep(round_trip / 2).await;
            self.watched.renewals_answered.fetch_add(1, SeqCst);
            return renewed;
        }
        if let Some((clock, time)) = self.watched.suspended.lock().unwrap().take() {
            clock.suspend(time);
        }
        Arc::clone(&self.inner).renew().await
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        self.watched.releases.fetch_add(1, SeqCst);
        assert!(!self.watched.releases_panic.load(SeqCst), "made to panic");
        let failing = *self.watched.failing_release.lock().unwrap();
        let this_fails = failing.is_some() && failing == self.request.key().as_str();
        if this_fails || take_one(&self.watched.releases_fail) {
            return Err(Error::new(ErrorKind::Unavailable, "made to fail"));
        }
        for _ in 0..self.watched.releases_yield.load(SeqCst) {
            tokio::task::yield_now().await;
        }
        let released = Arc::clone(&self.inner).release().await;
        if self.watched.answers_wait.load(SeqCst) {
            tokio::time::timeout(Duration::from_secs(3600), self.watched.answer.notified())
                .await
                .unwrap();
        }
        released
    }
}

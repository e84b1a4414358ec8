//! Foreign code that panics on demand: [`Panicking`], a backend, and [`PanickingSubscriber`].

use std::{
    fmt,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use async_trait::async_trait;
use leasehold_core::{
    Attempt, BoxFuture, Capabilities, Deadline, FencingToken, HolderRef, Inspection, KeepAlive,
    Lease, LockBackend, LockKey, Pong, Released, Request, Result, Revocation, RevokeOutcome,
};
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

/// A method of a backend or a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    TryAcquire,
    Acquire,
    Inspect,
    Break,
    Ping,
    FencingToken,
    ValidUntil,
    KeepAlive,
    Renew,
    Release,
}

/// A point in the course of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The method is called and has not yet returned a future.
    Called,
    /// The future is about to be polled.
    Polled,
    /// The operation has taken effect. An acquisition has released its grant again.
    Done,
}

impl Stage {
    pub(crate) const ALL: [Self; 3] = [Self::Called, Self::Polled, Self::Done];
}

/// A switch for the panics of one backend.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    armed: Mutex<Option<(Call, Stage)>>,
    /// The number of panics to come.
    left: AtomicUsize,
    /// A future was polled after it had panicked.
    polled_again: AtomicBool,
}

impl Plan {
    pub(crate) fn arm(&self, call: Call, stage: Stage, times: usize) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some((call, stage));
        self.left.store(times, SeqCst);
    }

    pub(crate) fn disarm(&self) {
        self.left.store(0, SeqCst);
    }

    pub(crate) fn left(&self) -> usize {
        self.left.load(SeqCst)
    }

    pub(crate) fn polled_again(&self) -> bool {
        self.polled_again.load(SeqCst)
    }

    fn is_armed(&self, call: Call, stage: Stage) -> bool {
        self.left() > 0
            && *self.armed.lock().unwrap_or_else(PoisonError::into_inner) == Some((call, stage))
    }

    /// Panics if it is time to.
    fn reached(&self, call: Call, stage: Stage) {
        if self.is_armed(call, stage)
            && self
                .left
                .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
                .is_ok()
        {
            // Without a message in the test's output for each.
            resume_unwind(Box::new("told to panic"));
        }
    }

    fn call<'a, T: 'a>(self: &Arc<Self>, call: Call, work: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        self.reached(call, Stage::Called);
        Box::pin(Polled {
            plan: Arc::clone(self),
            call,
            work,
            polling: false,
        })
    }
}

/// The future of a call.
struct Polled<'a, T> {
    plan: Arc<Plan>,
    call: Call,
    work: BoxFuture<'a, T>,
    /// Still set at the next poll only after a panic.
    polling: bool,
}

impl<T> Future for Polled<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if self.polling {
            self.plan.polled_again.store(true, SeqCst);
            return Poll::Pending;
        }
        self.polling = true;
        self.plan.reached(self.call, Stage::Polled);
        let polled = self.work.as_mut().poll(cx);
        if polled.is_ready() {
            self.plan.reached(self.call, Stage::Done);
        }
        self.polling = false;
        polled
    }
}

/// Another backend, whose calls panic as planned.
#[derive(Debug)]
pub(crate) struct Panicking {
    inner: Arc<dyn LockBackend>,
    plan: Arc<Plan>,
}

impl Panicking {
    pub(crate) fn new(inner: Arc<dyn LockBackend>, plan: &Arc<Plan>) -> Self {
        Self {
            inner,
            plan: Arc::clone(plan),
        }
    }

    async fn granted(&self, call: Call, lease: Arc<dyn Lease>) -> Arc<dyn Lease> {
        if self.plan.is_armed(call, Stage::Done) {
            drop(Arc::clone(&lease).release().await);
        }
        Arc::new(PanickingLease {
            inner: lease,
            plan: Arc::clone(&self.plan),
        })
    }
}

impl fmt::Display for Panicking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LockBackend for Panicking {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn try_acquire<'a>(self: Arc<Self>, request: Request) -> BoxFuture<'a, Result<Attempt>>
    where
        Self: 'a,
    {
        let this = Arc::clone(&self);
        let attempt = async move {
            Ok(match Arc::clone(&this.inner).try_acquire(request).await? {
                Attempt::Granted(lease) => {
                    Attempt::Granted(this.granted(Call::TryAcquire, lease).await)
                }
                contended => contended,
            })
        };
        self.plan.call(Call::TryAcquire, Box::pin(attempt))
    }

    fn acquire<'a>(self: Arc<Self>, request: Request) -> BoxFuture<'a, Result<Arc<dyn Lease>>>
    where
        Self: 'a,
    {
        let this = Arc::clone(&self);
        let acquisition = async move {
            let lease = Arc::clone(&this.inner).acquire(request).await?;
            Ok(this.granted(Call::Acquire, lease).await)
        };
        self.plan.call(Call::Acquire, Box::pin(acquisition))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.plan.call(Call::Inspect, self.inner.inspect(key)).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.plan
            .call(Call::Break, self.inner.revoke(holder, revocation))
            .await
    }

    async fn ping(&self) -> Result<Pong> {
        self.plan.call(Call::Ping, self.inner.ping()).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[derive(Debug)]
struct PanickingLease {
    inner: Arc<dyn Lease>,
    plan: Arc<Plan>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Lease for PanickingLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.plan.reached(Call::FencingToken, Stage::Called);
        self.inner.fencing_token()
    }

    fn valid_until(&self) -> Deadline {
        self.plan.reached(Call::ValidUntil, Stage::Called);
        self.inner.valid_until()
    }

    fn keep_alive(&self) -> KeepAlive {
        self.plan.reached(Call::KeepAlive, Stage::Called);
        self.inner.keep_alive()
    }

    fn renew<'a>(self: Arc<Self>) -> BoxFuture<'a, Result<()>>
    where
        Self: 'a,
    {
        self.plan.call(Call::Renew, Arc::clone(&self.inner).renew())
    }

    fn release<'a>(self: Arc<Self>) -> BoxFuture<'a, Result<Released>>
    where
        Self: 'a,
    {
        self.plan
            .call(Call::Release, Arc::clone(&self.inner).release())
    }
}

/// A tracing subscriber that panics at one of its calls, counted from 0, or at every call. It
/// records the targets of all crates of Leasehold.
///
/// The panics run no panic hook, so that the output of a test stays short.
///
/// ```
/// use leasehold_testkit::PanickingSubscriber;
///
/// let (subscriber, calls) = PanickingSubscriber::new(None);
/// let logging = || tracing::warn!(target: "leasehold", "this panics");
/// let panicked = std::panic::catch_unwind(|| tracing::subscriber::with_default(subscriber, logging));
/// assert!(panicked.is_err());
/// assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1);
/// ```
#[derive(Debug)]
pub struct PanickingSubscriber {
    at: Option<usize>,
    calls: Arc<AtomicUsize>,
    spans: AtomicU64,
}

impl PanickingSubscriber {
    /// Returns a subscriber and the count of its calls. `at`: the call that panics, or each.
    #[must_use]
    pub fn new(at: Option<usize>) -> (Self, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        (
            Self {
                at,
                calls: Arc::clone(&calls),
                spans: AtomicU64::new(0),
            },
            calls,
        )
    }

    fn called(&self) {
        let call = self.calls.fetch_add(1, SeqCst);
        if self.at.is_none_or(|at| at == call) {
            resume_unwind(Box::new("told to panic"));
        }
    }
}

impl Subscriber for PanickingSubscriber {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("leasehold")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.called();
        Id::from_u64(self.spans.fetch_add(1, SeqCst) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        self.called();
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {
        self.called();
    }

    fn event(&self, _: &Event<'_>) {
        self.called();
    }

    fn enter(&self, _: &Id) {
        self.called();
    }

    fn exit(&self, _: &Id) {
        self.called();
    }

    fn try_close(&self, _: Id) -> bool {
        self.called();
        false
    }
}

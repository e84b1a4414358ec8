//! [`Panicking`]: a backend that panics on demand.

use std::{
    fmt,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use async_trait::async_trait;
use leasehold_core::{
    Capabilities, Deadline, FencingToken, HolderRef, Inspection, LockKey, Pong, Released, Result,
    Revocation, RevokeOutcome,
    backend::{
        Attempt, BoxFuture, KeepAlive, Lease, LockBackend, RecordRead, RecordReading, RecordWrite,
        Request,
    },
};

/// A method of a backend or a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    TryAcquire,
    Acquire,
    Inspect,
    Revoke,
    ReadRecord,
    Ping,
    FencingToken,
    ValidUntil,
    KeepAlive,
    Renew,
    Release,
    WriteRecord,
}

/// A point in the course of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallPoint {
    /// The method is called and has not yet returned a future.
    Called,
    /// The future is about to be polled.
    Polled,
    /// The operation has taken effect. An acquisition has released its lock again.
    Done,
}

impl CallPoint {
    pub(crate) const ALL: [Self; 3] = [Self::Called, Self::Polled, Self::Done];
}

/// A switch for the panics of one backend.
#[derive(Debug, Default)]
pub(crate) struct PanicPlan {
    armed: Mutex<Option<(Call, CallPoint)>>,
    /// The number of panics to come.
    left: AtomicUsize,
    /// Whether a future was polled after it had panicked.
    polled_again: AtomicBool,
}

impl PanicPlan {
    pub(crate) fn arm(&self, call: Call, point: CallPoint, times: usize) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some((call, point));
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

    fn is_armed(&self, call: Call, point: CallPoint) -> bool {
        self.left() > 0
            && *self.armed.lock().unwrap_or_else(PoisonError::into_inner) == Some((call, point))
    }

    /// Panics if this point of this call is armed.
    fn reached(&self, call: Call, point: CallPoint) {
        if self.is_armed(call, point)
            && self
                .left
                .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
                .is_ok()
        {
            // `resume_unwind` runs no panic hook, so the test's output stays short.
            resume_unwind(Box::new("a panic on demand"));
        }
    }

    fn call<'a, T: 'a>(self: &Arc<Self>, call: Call, work: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        self.reached(call, CallPoint::Called);
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
    plan: Arc<PanicPlan>,
    call: Call,
    work: BoxFuture<'a, T>,
    /// Whether a poll is running. At the start of a poll it is `true` only after a panic.
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
        self.plan.reached(self.call, CallPoint::Polled);
        let polled = self.work.as_mut().poll(cx);
        if polled.is_ready() {
            self.plan.reached(self.call, CallPoint::Done);
        }
        self.polling = false;
        polled
    }
}

/// A wrapper of a backend, whose calls panic as the plan says.
#[derive(Debug)]
pub(crate) struct Panicking {
    inner: Arc<dyn LockBackend>,
    plan: Arc<PanicPlan>,
}

impl Panicking {
    pub(crate) fn new(inner: Arc<dyn LockBackend>, plan: &Arc<PanicPlan>) -> Self {
        Self {
            inner,
            plan: Arc::clone(plan),
        }
    }

    async fn granted(&self, call: Call, lease: Arc<dyn Lease>) -> Arc<dyn Lease> {
        if self.plan.is_armed(call, CallPoint::Done) {
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
            .call(Call::Revoke, self.inner.revoke(holder, revocation))
            .await
    }

    fn read_record<'a>(self: Arc<Self>, read: RecordRead) -> BoxFuture<'a, Result<RecordReading>>
    where
        Self: 'a,
    {
        self.plan
            .call(Call::ReadRecord, Arc::clone(&self.inner).read_record(read))
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
    plan: Arc<PanicPlan>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Lease for PanickingLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.plan.reached(Call::FencingToken, CallPoint::Called);
        self.inner.fencing_token()
    }

    fn valid_until(&self) -> Deadline {
        self.plan.reached(Call::ValidUntil, CallPoint::Called);
        self.inner.valid_until()
    }

    fn keep_alive(&self) -> KeepAlive {
        self.plan.reached(Call::KeepAlive, CallPoint::Called);
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

    fn write_record<'a>(self: Arc<Self>, write: RecordWrite) -> BoxFuture<'a, Result<u64>>
    where
        Self: 'a,
    {
        self.plan.call(
            Call::WriteRecord,
            Arc::clone(&self.inner).write_record(write),
        )
    }
}

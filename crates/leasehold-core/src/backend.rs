//! The contract: [`LockBackend`] grants [`Lease`]s.

use std::{
    fmt::{self, Debug, Display},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    capability::Capabilities,
    clock::Deadline,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
    key::LockKey,
    request::Request,
    retry::acquire_with_retry,
};

/// A boxed future that can be sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something that grants locks: a Redis server, an etcd cluster, a directory.
///
/// # For users
/// Do not call this; make a [`LockClient`](crate::LockClient) of it. The client adds what every
/// backend would otherwise repeat: one contender per key and process, renewal, loss, re-entrancy,
/// cancellation.
///
/// # For implementors
/// - **No future of yours is ever dropped half-way**, unless its runtime shuts down. Write
///   straight-line code.
/// - A deadline is computed by [`Request::deadline_from`], from [`Request::now`] read *before* the
///   first byte leaves.
/// - Every call ends: give input and output a time-out, well below a TTL.
/// - A key that cannot be stored injectively is refused with [`ErrorKind::InvalidInput`].
/// - A panic in a method is an [`Indeterminate`](ErrorKind::Indeterminate) error of that operation.
///   Its future is not polled again. A lease that was granted by then expires, unless a destructor
///   releases it.
/// - A failure is told by its [`ErrorKind`]; [`Unavailable`](ErrorKind::Unavailable) only if the
///   request certainly had no effect, else [`Indeterminate`](ErrorKind::Indeterminate), and then
///   undo what it may have done.
/// - `Display` is where the backend lives, without secrets. `Debug` shows no password.
/// - The conformance suite in `leasehold-testkit` checks all this; run it on your backend.
///
/// A wrapper must forward every method, also those with a default
/// (`#[deny(clippy::missing_trait_methods)]`).
#[async_trait]
pub trait LockBackend: Debug + Display + Send + Sync + 'static {
    /// What this backend promises. Cheap; does not change, except that
    /// [provisional](Capabilities::provisional) ones are replaced once.
    fn capabilities(&self) -> Capabilities;

    /// One attempt, no waiting.
    ///
    /// # Errors
    /// As the driver fails; contention is [`Attempt::Contended`], not an error.
    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt>;

    /// Queues until granted or until [`Request::cancelled`], and then leaves nothing behind.
    ///
    /// The default tries, waits for the contention's wake, its retry time or the cancellation, and
    /// tries again. Override it if the backend has a queue of its own, or has to clean up after a
    /// waiter: [`acquire_with_retry`] is the default as a function. An override calls
    /// [`Request::set_contended`] when it learns that another holds the lock, and retries the
    /// faults of its backend for up to one TTL; [`RetryBudget`](crate::RetryBudget) counts it.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] after a cancellation; otherwise as
    /// [`try_acquire`](Self::try_acquire).
    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        acquire_with_retry(request, |request| Arc::clone(&self).try_acquire(request)).await
    }

    /// Who holds the key and who waits for it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where capabilities say so; otherwise as the driver fails.
    async fn inspect(&self, key: &LockKey) -> Result<Inspection>;

    /// Revokes the lock of the holder that [`inspect`](Self::inspect) showed, never of a newer one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where capabilities say so; otherwise as the driver fails.
    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome>;

    /// Asks for a sign of life: one cheap round trip that changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] by default; otherwise as the driver fails.
    async fn ping(&self) -> Result<Pong> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backend has no ping; call `inspect` instead",
        ))
    }

    /// Ends sessions and connections. The client calls it last, after it released everything.
    ///
    /// # Errors
    /// As the driver fails.
    async fn close(&self) -> Result<()>;
}

/// Forwards to what the `Arc` holds, so that `Arc<B>` and `Arc<dyn LockBackend>` are backends
/// themselves.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: LockBackend + ?Sized> LockBackend for Arc<B> {
    fn capabilities(&self) -> Capabilities {
        B::capabilities(self)
    }

    // `self.try_acquire(..)` would call this very method again: name the inner one. Its future is
    // handed on as it is: one of ours around it would be an allocation more for each acquisition.
    fn try_acquire<'a>(self: Arc<Self>, request: Request) -> BoxFuture<'a, Result<Attempt>>
    where
        Self: 'a,
    {
        B::try_acquire(Arc::clone(&*self), request)
    }

    fn acquire<'a>(self: Arc<Self>, request: Request) -> BoxFuture<'a, Result<Arc<dyn Lease>>>
    where
        Self: 'a,
    {
        B::acquire(Arc::clone(&*self), request)
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        B::inspect(self, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        B::revoke(self, holder, revocation).await
    }

    async fn ping(&self) -> Result<Pong> {
        B::ping(self).await
    }

    async fn close(&self) -> Result<()> {
        B::close(self).await
    }
}

/// The outcome of one attempt.
#[derive(Debug)]
pub enum Attempt {
    /// The lock is ours.
    Granted(Arc<dyn Lease>),
    /// Another holds it.
    Contended(Contention),
}

/// What a refused attempt knows about when to try again.
#[derive(Default)]
pub struct Contention {
    /// When the holder's grant ends unless it is renewed; the net behind `wake`. Without it only
    /// `wake` ends the wait: leave it out only if nothing but a change that wakes can make the next
    /// attempt succeed.
    pub retry_after: Option<Duration>,
    /// The largest token that the backend saw for this key.
    pub last_token: Option<FencingToken>,
    /// Completes when trying again makes sense. It was armed *before* the attempt was sent, so no
    /// release in between is missed. Dropping it disarms it.
    pub wake: Option<BoxFuture<'static, ()>>,
}

impl Debug for Contention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contention")
            .field("retry_after", &self.retry_after)
            .field("last_token", &self.last_token)
            .field("wake", &self.wake.is_some())
            .finish()
    }
}

/// One grant.
///
/// # For implementors
/// `release` and `renew` may overlap, and no order of their effects may leave the lock held.
/// Dropping the last `Arc` of a lease does nothing: the client releases.
#[async_trait]
pub trait Lease: Debug + Send + Sync + 'static {
    /// The fencing token; `None` for permits and where the backend has none.
    fn fencing_token(&self) -> Option<FencingToken>;

    /// Until when this grant may be believed in. Live: renewals move it, for a shared session the
    /// session's. Keep it in a [`AtomicDeadline`](crate::AtomicDeadline).
    fn valid_until(&self) -> Deadline;

    /// Whether this lease is renewed by itself or with its session.
    fn keep_alive(&self) -> KeepAlive;

    /// Renews for another TTL, counted from before the renewal is sent.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] is final; any other error leaves the deadline where it was, and the
    /// renewer tries again.
    async fn renew(self: Arc<Self>) -> Result<()>;

    /// Gives the lock back, if it is still ours. Idempotent: once [`Released::Freed`] was told,
    /// every further call changes nothing and says [`Released::AlreadyLost`].
    ///
    /// # Errors
    /// As the driver fails; the lock is then free at its deadline.
    async fn release(self: Arc<Self>) -> Result<Released>;
}

/// How a lease is kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeepAlive {
    /// By renewals of its own.
    PerLease,
    /// With all leases of this session: one renewal serves them all.
    Session(SessionId),
}

/// Names a session within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// A new name.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The truth about a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The lock was ours until now, and is free.
    Freed,
    /// It was no longer ours: another may have held it since. Nothing of another's was touched.
    AlreadyLost,
    /// Another guard of the same owner still holds it (re-entrancy).
    StillHeld,
}

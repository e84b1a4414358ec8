//! [`LockBackend`] and [`Lease`]: what a backend implements.

use std::{
    fmt::{self, Debug, Display},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    backend::{
        capability::Capabilities,
        inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
        request::Request,
        retry::acquire_with_retry,
    },
    clock::Deadline,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    key::LockKey,
};

use async_trait::async_trait;

/// A boxed future that can be sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A service that grants locks, such as a Redis server, an etcd cluster or a directory.
///
/// # For users
/// Pass a backend to a [`LockClient`](crate::LockClient) and do not call it. The client adds what
/// every backend would otherwise repeat: one contender per key and process, renewal, loss
/// detection, re-entrancy and cancellation.
///
/// # For implementors
/// - **No future of a backend is dropped before it completes**, unless its runtime shuts down.
///   Straight-line code is safe.
/// - [`Request::deadline_from`] computes a deadline, from a [`Request::now`] that was read *before*
///   the first byte is sent.
/// - Every call ends. Give input and output a time-out well below a TTL.
/// - A key that cannot be stored injectively is refused with [`ErrorKind::InvalidInput`].
/// - A panic in a method is an [`Indeterminate`](ErrorKind::Indeterminate) error of that operation.
///   Its future is not polled again. A lease that was granted by then expires, unless a destructor
///   releases it.
/// - An error's [`ErrorKind`] says what happened. [`Unavailable`](ErrorKind::Unavailable) is for a
///   request that certainly had no effect. Otherwise the kind is
///   [`Indeterminate`](ErrorKind::Indeterminate), and the backend undoes what the request may have
///   done.
/// - `Display` shows where the backend is, without secrets. `Debug` shows no password.
/// - The conformance suite in `leasehold-testkit` checks all of this.
///
/// A wrapper must forward every method, also those with a default
/// (`#[deny(clippy::missing_trait_methods)]`).
#[async_trait]
pub trait LockBackend: Debug + Display + Send + Sync + 'static {
    /// Returns what this backend promises. The call is cheap, and the result does not change,
    /// except that [provisional](Capabilities::provisional) capabilities are replaced once.
    fn capabilities(&self) -> Capabilities;

    /// Makes one attempt to acquire the lock, without waiting.
    ///
    /// # Errors
    /// As the driver fails. Contention is [`Attempt::Contended`], not an error.
    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt>;

    /// Waits until the lock is granted or [`Request::cancelled`] completes, and then leaves no
    /// waiter behind.
    ///
    /// The default makes attempts. After a refusal it waits for the contention's wake-up, its retry
    /// time or the cancellation. Override it if the backend has a queue of its own or must clean up
    /// after a waiter; [`acquire_with_retry`] is the default as a function. An override calls
    /// [`Request::set_contended`] when it learns that another acquisition holds the lock. It
    /// retries the faults of its backend for up to one TTL, counted by
    /// [`RetryBudget`](support::RetryBudget).
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] after a cancellation; otherwise as
    /// [`try_acquire`](Self::try_acquire).
    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        acquire_with_retry(request, |request| Arc::clone(&self).try_acquire(request)).await
    }

    /// Returns the current holders of and waiters for `key`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] by default and where the capabilities say so; otherwise as the
    /// driver fails.
    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("this backend cannot list the holders of `{key}`"),
        ))
    }

    /// Revokes the lock of a holder that [`inspect`](Self::inspect) returned. A newer holder of the
    /// same key is never affected.
    ///
    /// After a graceful revocation renewals stop, so the lock is free once its deadline passes. An
    /// immediate one frees the lock at once, which is unsafe unless the resource checks fencing
    /// tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] by default and where the capabilities say so; otherwise as the
    /// driver fails.
    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        let _ = (holder, revocation);
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backend cannot revoke locks",
        ))
    }

    /// Checks that the backend answers, by one cheap round trip that changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] by default; otherwise as the driver fails.
    async fn ping(&self) -> Result<Pong> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backend has no ping; call `inspect` instead",
        ))
    }

    /// Closes sessions and connections. The client calls it last, after it released everything. The
    /// default does nothing.
    ///
    /// # Errors
    /// As the driver fails.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Forwards to the inner backend, so that `Arc<B>` and `Arc<dyn LockBackend>` are backends too.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: LockBackend + ?Sized> LockBackend for Arc<B> {
    fn capabilities(&self) -> Capabilities {
        B::capabilities(self)
    }

    // `self.try_acquire(..)` would call this method again, so the inner method is named explicitly.
    // Its future is returned unchanged, because wrapping it would allocate once more per
    // acquisition.
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
    /// The lock is acquired.
    Granted(Arc<dyn Lease>),
    /// Another acquisition holds the lock.
    Contended(Contention),
}

/// A refusal, with what the backend knows about when to try again.
#[derive(Default)]
pub struct Contention {
    /// The time until the holder's grant ends unless it is renewed: the fallback if no `wake`
    /// comes. Without it only `wake` ends the wait. Omit it only if nothing but a change that
    /// completes `wake` can let the next attempt succeed.
    pub retry_after: Option<Duration>,
    /// The largest token that the backend has seen for this key.
    pub last_token: Option<FencingToken>,
    /// A future that completes when another attempt makes sense. It was armed *before* the attempt
    /// was sent, so that no release in between is missed. Dropping it disarms it.
    pub wake: Option<BoxFuture<'static, ()>>,
}

impl Contention {
    /// Returns a refusal without a wake-up: the next attempt is made after this time.
    #[must_use]
    pub fn retry_after(duration: Duration) -> Self {
        Self {
            retry_after: Some(duration),
            ..Self::default()
        }
    }
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

/// One granted lock.
///
/// # For implementors
/// `release` and `renew` may overlap, and no order of their effects may leave the lock held.
/// Dropping the last `Arc` of a lease does nothing, because the client releases it.
#[async_trait]
pub trait Lease: Debug + Send + Sync + 'static {
    /// Returns the fencing token; `None` for permits and where the backend has no tokens.
    fn fencing_token(&self) -> Option<FencingToken>;

    /// Returns the deadline of this lease. It advances on every renewal, of the lease itself or of
    /// its session. Keep it in an [`AtomicDeadline`].
    fn valid_until(&self) -> Deadline;

    /// Returns whether this lease is renewed by itself or with its session.
    fn keep_alive(&self) -> KeepAlive;

    /// Renews the lease for another TTL, counted from before the renewal is sent.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] is final. Any other error leaves the deadline where it was, and the
    /// client retries.
    async fn renew(self: Arc<Self>) -> Result<()>;

    /// Releases the lock, if this lease still holds it. It is idempotent: after it returned
    /// [`Released::Freed`], every further call changes nothing and returns
    /// [`Released::AlreadyLost`].
    ///
    /// # Errors
    /// As the driver fails. The lock is then free at its deadline.
    async fn release(self: Arc<Self>) -> Result<Released>;
}

/// The way in which a lease is kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeepAlive {
    /// The lease is renewed by itself.
    PerLease,
    /// The lease is renewed with all leases of this session, by one renewal.
    Session(SessionId),
}

/// The identity of a session within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// Returns an identity that no other session has.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The outcome of a release.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Released;
///
/// let guard = client.mutex("item/42").lock().await?;
/// match guard.release().await? {
///     Released::AlreadyLost => println!("another may have held it meanwhile"),
///     _ => println!("it was held until now"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The lock was held until now, and is free.
    Freed,
    /// The lock was no longer held: another acquisition may have held it since. The lock of another
    /// holder was not changed.
    AlreadyLost,
    /// Another guard of the same owner still holds the lock (re-entrancy).
    StillHeld,
}

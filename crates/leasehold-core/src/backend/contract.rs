//! [`LockBackend`]: what a backend implements.

use std::{
    fmt::{Debug, Display},
    sync::Arc,
};

use async_trait::async_trait;

use crate::{
    backend::{
        attempt::Attempt,
        capability::Capabilities,
        inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
        lease::{BoxFuture, Lease},
        record::{RecordRead, RecordReading},
        request::Request,
        retry::acquire_with_retry,
    },
    error::{Error, ErrorKind, Result},
    key::LockKey,
};

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
/// - The client has checked that the [capabilities](Self::capabilities) have the mode and the TTL
///   of a request. Callers without a client call [`Capabilities::check`] first.
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
///
/// ```
/// use std::{
///     collections::HashMap,
///     fmt,
///     sync::{Arc, Mutex},
///     time::Duration,
/// };
/// use leasehold_core::{
///     AcquisitionId, Capabilities, Deadline, LockKey, Result,
///     backend::{Attempt, Contention, LockBackend, Request, async_trait},
/// };
/// # use leasehold_core::{Error, ErrorKind, FencingToken, LockClient, Released};
/// # use leasehold_core::backend::{AtomicDeadline, KeepAlive, Lease};
///
/// /// Exclusive locks within one process.
/// #[derive(Debug, Default)]
/// struct MapBackend {
///     holders: Mutex<HashMap<LockKey, (AcquisitionId, Deadline)>>,
/// }
///
/// impl fmt::Display for MapBackend {
///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///         f.write_str("map:")
///     }
/// }
///
/// #[async_trait]
/// impl LockBackend for MapBackend {
///     fn capabilities(&self) -> Capabilities {
///         Capabilities::new("map")
///     }
///
///     async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
///         let now = request.now();
///         let deadline = request.deadline_from(now);
///         let mut holders = self.holders.lock().unwrap();
///         if holders.get(request.key()).is_some_and(|(_, deadline)| !deadline.is_past(now)) {
///             return Ok(Attempt::Contended(Contention::retry_after(Duration::from_millis(10))));
///         }
///         holders.insert(request.key().clone(), (request.owner(), deadline));
///         drop(holders);
///         // `MapLease` implements `Lease`.
///         Ok(Attempt::Granted(Arc::new(MapLease::new(self, request, deadline))))
///     }
/// }
/// # #[derive(Debug)]
/// # struct MapLease {
/// #     backend: Arc<MapBackend>,
/// #     request: Request,
/// #     deadline: AtomicDeadline,
/// # }
/// # impl MapLease {
/// #     fn new(backend: Arc<MapBackend>, request: Request, deadline: Deadline) -> Self {
/// #         Self { backend, request, deadline: AtomicDeadline::new(deadline) }
/// #     }
/// # }
/// # #[async_trait]
/// # impl Lease for MapLease {
/// #     fn fencing_token(&self) -> Option<FencingToken> { None }
/// #     fn valid_until(&self) -> Deadline { self.deadline.get() }
/// #     fn keep_alive(&self) -> KeepAlive { KeepAlive::PerLease }
/// #     async fn renew(self: Arc<Self>) -> Result<()> {
/// #         let now = self.request.now();
/// #         let mut holders = self.backend.holders.lock().unwrap();
/// #         match holders.get_mut(self.request.key()) {
/// #             Some((id, deadline)) if *id == self.request.owner() && !deadline.is_past(now) => {
/// #                 *deadline = self.request.deadline_from(now);
/// #                 if self.deadline.advance(*deadline, now) {
/// #                     return Ok(());
/// #                 }
/// #             }
/// #             _ => {}
/// #         }
/// #         Err(Error::new(ErrorKind::Lost, "the lock has expired"))
/// #     }
/// #     async fn release(self: Arc<Self>) -> Result<Released> {
/// #         let mut holders = self.backend.holders.lock().unwrap();
/// #         match holders.get(self.request.key()) {
/// #             Some((id, deadline)) if *id == self.request.owner() => {
/// #                 let expired = deadline.is_past(self.request.now());
/// #                 holders.remove(self.request.key());
/// #                 Ok(if expired { Released::AlreadyLost } else { Released::Freed })
/// #             }
/// #             _ => Ok(Released::AlreadyLost),
/// #         }
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// # let client = LockClient::new(MapBackend::default());
/// # let guard = client.mutex("item/42").lock().await?;
/// # assert!(client.mutex("item/42").try_lock().await?.is_none());
/// # guard.renew().await?;
/// # assert_eq!(guard.release().await?, Released::Freed);
/// # assert!(client.mutex("item/42").try_lock().await?.is_some());
/// # Ok(()) }
/// ```
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
    /// [`RetryBudget`](crate::backend::support::RetryBudget).
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
    /// After a graceful revocation the holder keeps the lock until its deadline, and may release it
    /// before. [`Lease::renew`] fails with [`ErrorKind::Revoked`]. An immediate revocation frees
    /// the lock at once, which is unsafe unless the resource checks fencing tokens.
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

    /// Reads the record beside a lock. The lock itself may be held, waited for, or free.
    ///
    /// # What the answer promises
    /// - **Succession**: a reader that has been granted the lock sees every write of the earlier
    ///   holders that took effect, or a later one. A read that starts after
    ///   [`Lease::write_record`] has returned sees that write or a later one, on every connection.
    /// - **Independence**: the record of a key is distinct from every other record and from every
    ///   lock, whatever the keys. Release, expiry and revocation of the lock leave it as it is.
    /// - **A read never waits** for the lock, and changes nothing that a client can see.
    /// - [`RecordReading::changed`] and [`RecordReading::now`] are as documented there. `changed`
    ///   is returned if the read asks for it and the backend can notify; `now`, if the read asks
    ///   for it and the server has a clock.
    ///
    /// [`StoredRecord`](crate::backend::support::StoredRecord) is the encoding that the backends of
    /// this workspace share.
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`] by default and where the capabilities say so.
    /// - [`ErrorKind::Conflict`] if the place of the record has a value of another program.
    /// - [`ErrorKind::Unavailable`] if there is no answer, since a read has no effect.
    /// - Otherwise as the driver fails.
    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        let _ = read;
        self.capabilities().check_records()?;
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backend does not implement `read_record`, although its capabilities have records",
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

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        B::read_record(Arc::clone(&*self), read).await
    }

    async fn ping(&self) -> Result<Pong> {
        B::ping(self).await
    }

    async fn close(&self) -> Result<()> {
        B::close(self).await
    }
}

//! [`LockClient`]: a handle for creating locks on one backend.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    backend::{
        capability::Capabilities,
        contract::LockBackend,
        inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
        request::RequestContext,
    },
    client::{
        acquire::unanswered,
        engine::{Client, Spec},
    },
    error::{Error, ErrorKind, Result},
    key::LockKey,
    lease::{grant::CompleteOnDrop, held_lease::Renewal},
    mode::Mode,
    panics::Call,
    ttl::Ttl,
};

/// A handle for creating locks on one backend.
///
/// Create one client per process and clone it freely. Cloning is cheap, and all clones share one
/// connection and one state. Tasks that share a client wait for a key in a local queue, and only
/// the first of them contends at the backend. One background task renews all leases of the client.
///
/// # Runtime
/// A client belongs to the tokio runtime on which it was created, because its connection lives
/// there. A client that was created outside of a runtime, or whose backend is in this process,
/// belongs to the runtime on which it is first used. On another runtime, or on a runtime without a
/// timer, operations fail with [`ErrorKind::WrongRuntime`].
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use leasehold_core::LockClient;
///
/// let client = LockClient::new(MemoryBackend::new());
/// let guard = client.mutex("item/42").lock().await?;
/// assert!(guard.is_held());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct LockClient(pub(crate) Arc<Client>);

impl LockClient {
    /// Returns an error if the client is closed or belongs to another runtime.
    pub(crate) fn check_usable(&self) -> Result<()> {
        self.0.context.check_usable()
    }

    /// Returns the error of a wait that ended after `timeout`, or `Ok` if the lock was held
    /// meanwhile.
    pub(crate) fn check_answered(&self, key: &LockKey, timeout: Duration) -> Result<()> {
        let (client, since) = (&self.0, self.0.context.requests.clock.now());
        let last = client.queues.last(key, Mode::Exclusive);
        if last
            .as_ref()
            .is_some_and(|last| last.excludes_others_after(since))
        {
            return Ok(());
        }
        Err(unanswered(
            client,
            key,
            timeout,
            last.and_then(|last| last.fault()),
        ))
    }

    pub(crate) fn spec<K>(&self, key: K, mode: Mode) -> Spec
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let (ttl, context) = self.options();
        Spec {
            key: key.try_into().map_err(Error::from),
            mode,
            ttl,
            renewal: Renewal::Automatic,
            proposal: None,
            context,
        }
    }

    /// Returns the default TTL and the request context of new locks.
    pub(crate) fn options(&self) -> (Option<Result<Ttl>>, Arc<RequestContext>) {
        (self.0.ttl.clone(), Arc::clone(&self.0.context.requests))
    }

    /// Returns the promises of the backend. They are [provisional](Capabilities::provisional) until
    /// a client that connects [lazily](crate::backend::LazyBackend) has reached its server.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    /// Returns the backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn LockBackend> {
        &self.0.context.backend
    }

    /// Returns the current holders of and waiters for `key`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the backend cannot list them. Otherwise, the error of the
    /// backend.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn inspect<K>(&self, key: K) -> Result<Inspection>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        self.0.context.check_usable()?;
        let (backend, key) = (Arc::clone(&self.0.context.backend), key.try_into()?);
        CompleteOnDrop::short(
            &self.0.context,
            Call::of(|| Box::pin(async move { backend.inspect(&key).await })),
        )
        .await
    }

    /// Revokes the lock held by `holder`. A newer holder of the same key is never affected.
    ///
    /// After a [graceful](Revocation::Graceful) revocation the holder keeps the lock until its
    /// deadline, so that it can end its work.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the backend cannot revoke locks. Otherwise, the error of the
    /// backend.
    ///
    /// # Cancel safety
    /// The lock may or may not have been revoked.
    pub async fn revoke(
        &self,
        holder: &HolderRef,
        revocation: Revocation,
    ) -> Result<RevokeOutcome> {
        self.0.context.check_usable()?;
        let (backend, holder) = (Arc::clone(&self.0.context.backend), holder.clone());
        CompleteOnDrop::short(
            &self.0.context,
            Call::of(|| Box::pin(async move { backend.revoke(&holder, revocation).await })),
        )
        .await
    }

    /// Checks that the backend answers, for health checks. A ping is one cheap round trip that
    /// takes no lock and changes nothing.
    ///
    /// A quorum answers if a majority of its nodes answers; [`Pong::nodes`] lists the nodes that do
    /// not. A client that connects [lazily](crate::backend::LazyBackend) tries to connect. A client
    /// that [drains](Self::drain) can still ping.
    ///
    /// An answer does not mean that the next lock can be acquired: the user may lack a permission,
    /// or the disk may be full.
    ///
    /// ```
    /// # use leasehold_local::MemoryBackend;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
    /// # use leasehold_core::LockClient;
    /// # let client = LockClient::new(MemoryBackend::new());
    /// for node in client.ping().await?.nodes {
    ///     if let Some(problem) = node.problem {
    ///         eprintln!("{} does not answer: {problem}", node.endpoint);
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - [`ErrorKind::Unavailable`] or [`ErrorKind::Indeterminate`] if no answer comes within the
    ///   backend's timeout.
    /// - [`ErrorKind::Unsupported`] if the backend has no ping.
    /// - Otherwise, the error of the backend.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ping(&self) -> Result<Pong> {
        self.0.context.check_usable()?;
        let backend = Arc::clone(&self.0.context.backend);
        let ping = Call::of(|| Box::pin(async move { backend.ping().await }));
        CompleteOnDrop::short(&self.0.context, ping)
            .await
            .map_err(|error| match error.operation() {
                Some(_) => error,
                None => error.with_operation("ping"),
            })
    }

    /// Refuses new locks and waits until the last lock is released.
    ///
    /// Call it when a program shuts down, before [`close`](Self::close), which would take the locks
    /// from work that is still running.
    ///
    /// From the first poll on, new and waiting acquisitions fail with [`ErrorKind::Closed`], on all
    /// clones of the client. Holders keep their locks, which are renewed as before, until they
    /// release them. A re-entrant acquisition within a [`ReentrantOwner`](crate::ReentrantOwner) is
    /// still granted. Draining cannot be undone.
    ///
    /// `drain` returns when no lock of this client is held and every release has been answered. A
    /// failed release is retried until the lock expires. A lock that is lost counts as released.
    /// `drain` also waits for pending acquisitions, which end when they are next polled. A task
    /// that holds a guard, or that has a pending `lock` which it does not poll, must therefore not
    /// await `drain` without a timeout.
    ///
    /// ```
    /// # use leasehold_local::MemoryBackend;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
    /// # use leasehold_core::LockClient;
    /// # let client = LockClient::new(MemoryBackend::new());
    /// use std::time::Duration;
    ///
    /// // Holders have ten seconds. `close` then releases the locks that they still hold.
    /// if tokio::time::timeout(Duration::from_secs(10), client.drain()).await.is_err() {
    ///     eprintln!("some locks were not released in time");
    /// }
    /// client.close().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    /// Safe: after a drop, the client still refuses new locks. Call it again to continue waiting.
    pub async fn drain(&self) {
        self.0.drain().await;
    }

    /// Releases all locks and closes the backend.
    ///
    /// - Waiters and all later operations get [`ErrorKind::Closed`].
    /// - Guards are lost with [`ClientClosed`](crate::LossReason::ClientClosed), and their locks
    ///   are released. A failed release is retried for 2 s.
    /// - Running operations have 5 s to end. A lock that is granted to an acquisition which is not
    ///   polled any more expires.
    ///
    /// # Errors
    /// The error with which the backend failed to close. Locks that could not be released expire.
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped, closing continues in the background.
    pub async fn close(&self) -> Result<()> {
        self.0.context.check_runtime()?;
        let client = Arc::clone(&self.0);
        // From here on all operations are refused. Closing is spawned, so that it continues if this
        // future is dropped.
        client.context.requests.closing.cancel();
        let closing = tokio::spawn(async move { client.close().await });
        match closing.await {
            Ok(closed) => closed,
            Err(source) => Err(Error::new(
                ErrorKind::Indeterminate,
                "the client was not closed: its runtime is shutting down, or its backend panicked",
            )
            .with_source(source)),
        }
    }
}

/// Displays the address of the backend.
impl fmt::Display for LockClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.context.backend.fmt(f)
    }
}

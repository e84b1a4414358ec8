//! [`LockClient`]: where locks come from.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    backend::{
        capability::Capabilities,
        contained::Call,
        contract::LockBackend,
        inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
    },
    client::{acquire::unanswered, engine::Client, spec::Spec},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    lease::{complete_on_drop::CompleteOnDrop, renewal_mode::Renewal},
    mode::Mode,
};

/// Where locks come from: one per backend and program. Cloning is cheap and gives the same client.
///
/// All tasks that share a client queue for a key within the process and contend for it remotely one
/// at a time; one task of the client renews all leases.
///
/// A client belongs to one tokio runtime: the one that it was made on, where its connection lives.
/// A client that was made outside of any runtime, or whose backend is a part of this process,
/// belongs to the one that it is first used on. On another runtime, and on one without a timer, its
/// operations fail with [`ErrorKind::WrongRuntime`].
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

    /// Returns the error of a wait for what another task of this client was about to be granted;
    /// none if the lock was held meanwhile.
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
        Spec {
            key: key.try_into().map_err(Error::from),
            mode,
            ttl: self.0.ttl.clone(),
            renewal: Renewal::Automatic,
            context: Arc::clone(&self.0.context.requests),
        }
    }

    /// What the backend promises. Until a client that connects
    /// [lazily](crate::backend::LazyBackend) has reached its server, they are
    /// [provisional](Capabilities::provisional).
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn LockBackend> {
        &self.0.context.backend
    }

    /// Returns the current holders of `key` and those who wait for it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the backend cannot tell; otherwise as the backend fails.
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
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the backend cannot; otherwise as the backend fails.
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

    /// Asks the backend for a sign of life, for health checks: one cheap round trip that takes no
    /// lock and changes nothing.
    ///
    /// A quorum answers if a majority of its nodes does; [`Pong::nodes`] says which do not. A
    /// client that connects [lazily](crate::backend::LazyBackend) tries to connect. A client that
    /// [drains](Self::drain) still pings.
    ///
    /// An answer does not promise that the next lock can be had: the user may lack a right, or the
    /// disk may be full.
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
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Indeterminate`] if no answer comes within the
    /// backend's time-out, [`ErrorKind::Unsupported`] if the backend has no ping; otherwise as the
    /// backend fails.
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

    /// Takes no new locks from now on, and waits until the last lock is released. For a program
    /// that shuts down: [`close`](Self::close) would take the locks away from work that is under
    /// way.
    ///
    /// From the first poll on, acquisitions that begin or wait fail with [`ErrorKind::Closed`], on
    /// all clones of the client. Holders keep their locks, which are renewed as before, and release
    /// them when they are done. A lock that is entered again within its [`ReentrantOwner`](crate::ReentrantOwner) is
    /// granted. This cannot be undone.
    ///
    /// It returns when no lock of this client is held and every release has been answered. A
    /// release that fails is tried again until the lock expires. A lock that is lost counts as
    /// released. It also waits for acquisitions to end, which they do when they are next polled. So
    /// a task that holds a guard, or has a pending `lock` that it does not poll, must not wait for
    /// it without a time-out.
    ///
    /// ```
    /// # use leasehold_local::MemoryBackend;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
    /// # use leasehold_core::LockClient;
    /// # let client = LockClient::new(MemoryBackend::new());
    /// use std::time::Duration;
    ///
    /// // Holders have ten seconds. `close` takes from them what they still hold.
    /// if tokio::time::timeout(Duration::from_secs(10), client.drain()).await.is_err() {
    ///     eprintln!("some locks were not released in time");
    /// }
    /// client.close().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    /// Safe: dropped, the client still refuses new locks. Call it again to go on waiting.
    pub async fn drain(&self) {
        self.0.drain().await;
    }

    /// Gives everything back and waits for it: waiters get [`ErrorKind::Closed`], guards are lost
    /// to [`LossReason::ClientClosed`](crate::LossReason::ClientClosed) and their locks released, what is under way ends, the
    /// backend is closed. After it every operation says [`ErrorKind::Closed`]. What is under way is
    /// waited for for 5 s at most: a release that fails is tried again for 2 s, and what an
    /// acquisition is granted that nobody polls any more expires.
    ///
    /// # Errors
    /// As the backend fails to close. Locks that could not be released expire.
    ///
    /// # Cancel safety
    /// Safe: dropped half-way, it goes on in the background.
    pub async fn close(&self) -> Result<()> {
        self.0.context.check_runtime()?;
        let client = Arc::clone(&self.0);
        // From here on everything is refused, and it goes on if we are dropped.
        client.context.requests.closing.cancel();
        let closing = tokio::spawn(async move { client.close().await });
        match closing.await {
            Ok(closed) => closed,
            Err(source) => Err(Error::new(
                ErrorKind::Indeterminate,
                "the client did not close: its runtime shuts down, or its backend panicked",
            )
            .with_source(source)),
        }
    }
}

/// Shows where the backend lives.
impl fmt::Display for LockClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.context.backend.fmt(f)
    }
}

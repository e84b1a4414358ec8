//! [`LockClient`]: a handle for creating locks on one backend.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, OnceCell},
    task::coop::unconstrained,
    time::timeout,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{
    backend::{
        capability::{Capabilities, Restart},
        contract::{BoxFuture, LockBackend},
        inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
        request::RequestContext,
    },
    client::{
        acquire::unanswered, background_releases::BackgroundReleases,
        complete_on_drop::CompleteOnDrop, local_queue::LocalQueues,
    },
    clock::{Clock, SystemClock},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    lease::{renewal::Renewer, signal::LossReason},
    lock::{
        mutex::Mutex as LockMutex,
        options::{Renewal, Spec},
        reentrant::ReentrantOwner,
        rwlock::RwLock,
        semaphore::Semaphore,
    },
    mode::Mode,
    panics::{Call, contain},
    runtime, telemetry,
    ttl::Ttl,
};

/// How long [`LockClient::close`] waits for running operations.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

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
pub struct LockClient(Arc<Client>);

impl LockClient {
    /// Creates a client of `backend` with the default options.
    #[must_use]
    pub fn new(backend: impl LockBackend) -> Self {
        Self::builder(backend).build()
    }

    /// Creates a builder for a client of `backend`.
    pub fn builder(backend: impl LockBackend) -> LockClientBuilder {
        LockClientBuilder {
            backend: Arc::new(backend),
            ttl: None,
            label: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// Creates a handle for the mutex named `key`.
    ///
    /// Nothing is sent until it is locked. An invalid key is reported then.
    pub fn mutex<K>(&self, key: K) -> LockMutex
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        LockMutex::new(Arc::clone(&self.0), self.spec(key, Mode::Exclusive))
    }

    /// Creates a handle for the read-write lock named `key`.
    ///
    /// Its write lock is the same lock as the [`mutex`](Self::mutex) with this key.
    pub fn rwlock<K>(&self, key: K) -> RwLock
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        RwLock::new(Arc::clone(&self.0), self.spec(key, Mode::Exclusive))
    }

    /// Creates a handle for the semaphore named `key`, with this number of permits.
    ///
    /// All users of the semaphore must pass the same number. While permits are held, acquiring with
    /// another number fails with [`ErrorKind::Conflict`]. Acquiring from a semaphore of zero
    /// permits fails with [`ErrorKind::InvalidInput`].
    pub fn semaphore<K>(&self, key: K, permits: u32) -> Semaphore
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        Semaphore::new(
            Arc::clone(&self.0),
            self.spec(key, Mode::Exclusive),
            permits,
        )
    }

    /// Creates a scope in which locks are re-entrant.
    #[must_use]
    pub fn reentrant_owner(&self) -> ReentrantOwner {
        ReentrantOwner::new(self.clone())
    }

    /// Returns an error if the client is closed or belongs to another runtime.
    pub(crate) fn check_usable(&self) -> Result<()> {
        self.0.check_usable()
    }

    /// Returns the error of a wait that ended after `timeout`, or `Ok` if the lock was held
    /// meanwhile.
    pub(crate) fn check_answered(&self, key: &LockKey, timeout: Duration) -> Result<()> {
        let (client, since) = (&self.0, self.0.context.clock.now());
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

    fn spec<K>(&self, key: K, mode: Mode) -> Spec
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        Spec {
            key: key.try_into().map_err(Error::from),
            mode,
            ttl: self.0.ttl.clone(),
            renewal: Renewal::Automatic,
            context: Arc::clone(&self.0.context),
        }
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
        &self.0.backend
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
        self.0.check_usable()?;
        let (backend, key) = (Arc::clone(&self.0.backend), key.try_into()?);
        CompleteOnDrop::short(
            &self.0,
            Call::of(|| Box::pin(async move { backend.inspect(&key).await })),
        )
        .await
    }

    /// Revokes the lock held by `holder`. A newer holder of the same key is never affected.
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
        self.0.check_usable()?;
        let (backend, holder) = (Arc::clone(&self.0.backend), holder.clone());
        CompleteOnDrop::short(
            &self.0,
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
        self.0.check_usable()?;
        let backend = Arc::clone(&self.0.backend);
        let ping = Call::of(|| Box::pin(async move { backend.ping().await }));
        CompleteOnDrop::short(&self.0, ping)
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
    /// release them. A re-entrant acquisition within a [`ReentrantOwner`] is still granted.
    /// Draining cannot be undone.
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
    /// - Guards are lost with [`LossReason::ClientClosed`], and their locks are released. A failed
    ///   release is retried for 2 s.
    /// - Running operations have 5 s to end. A lock that is granted to an acquisition which is not
    ///   polled any more expires.
    ///
    /// # Errors
    /// The error with which the backend failed to close. Locks that could not be released expire.
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped, closing continues in the background.
    pub async fn close(&self) -> Result<()> {
        self.0.check_runtime()?;
        let client = Arc::clone(&self.0);
        // From here on all operations are refused. Closing is spawned, so that it continues if this
        // future is dropped.
        client.context.closing.cancel();
        let closing =
            tokio::spawn(async move { client.closed.get_or_init(|| client.close()).await.clone() });
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
        self.0.backend.fmt(f)
    }
}

/// A builder for a [`LockClient`].
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// use std::time::Duration;
///
/// let client = LockClient::builder(MemoryBackend::new())
///     .with_ttl(Duration::from_secs(10))
///     .with_label("till 3")
///     .build();
/// let guard = client.mutex("item/42").lock().await?;
/// assert_eq!(client.inspect("item/42").await?.holders[0].label, "till 3");
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use]
pub struct LockClientBuilder {
    backend: Arc<dyn LockBackend>,
    ttl: Option<Result<Ttl>>,
    label: Option<Arc<str>>,
    clock: Arc<dyn Clock>,
}

impl LockClientBuilder {
    /// Sets the default TTL for locks created by this client, as a [`Duration`] or a [`Ttl`].
    ///
    /// Defaults to [`Ttl::DEFAULT`], or the nearest value in the backend's range. A TTL that is set
    /// here is not adapted: if it is invalid or outside the backend's range, acquisitions fail with
    /// [`ErrorKind::InvalidInput`].
    pub fn with_ttl<T>(mut self, ttl: T) -> Self
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        self.ttl = Some(ttl.try_into().map_err(Error::from));
        self
    }

    /// Sets the default label for locks created by this client, shown by `inspect`.
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the clock, for tests.
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Creates the client. Nothing is sent yet.
    #[must_use]
    pub fn build(self) -> LockClient {
        let Self {
            backend,
            ttl,
            label,
            clock,
        } = self;
        telemetry::describe();
        let capabilities = backend.capabilities();
        telemetry::begin_counting(capabilities.backend);
        let runtime = runtime_of(&capabilities).map_or_else(OnceLock::new, OnceLock::from);
        let losses = Arc::new(Notify::new());
        let context = RequestContext {
            label: label.unwrap_or_else(crate::label::default_label),
            clock: Arc::clone(&clock),
            drift: capabilities.drift,
            losses: Arc::clone(&losses),
            closing: Arc::default(),
            draining: Arc::default(),
        };
        LockClient(Arc::new(Client {
            backend,
            capabilities,
            final_capabilities: OnceLock::new(),
            ttl,
            ttl_is_adapted: Once::new(),
            context: Arc::new(context),
            queues: Arc::new(LocalQueues::new(Arc::clone(&clock))),
            renewer: Arc::new(Renewer::new(clock, losses)),
            runtime,
            has_timer: OnceLock::new(),
            closed: OnceCell::new(),
            background_releases: Arc::default(),
            tasks: TaskTracker::new(),
            next_hold: AtomicU64::new(0),
        }))
    }
}

/// Returns the runtime of the backend's connection. A backend in this process has none.
fn runtime_of(capabilities: &Capabilities) -> Option<Handle> {
    Handle::try_current()
        .ok()
        .filter(|_| !is_in_this_process(capabilities))
}

/// Returns whether the backend is in this process, because it ends with its holders.
fn is_in_this_process(capabilities: &Capabilities) -> bool {
    capabilities.restart == Restart::EndsHolders
}

/// The state shared by the clones of a client, its locks and its guards.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) backend: Arc<dyn LockBackend>,
    /// The capabilities when the client was built; see [`capabilities`](Self::capabilities).
    pub(crate) capabilities: Capabilities,
    /// The capabilities that replaced provisional ones.
    final_capabilities: OnceLock<Capabilities>,
    pub(crate) queues: Arc<LocalQueues>,
    pub(crate) renewer: Arc<Renewer>,
    pub(crate) context: Arc<RequestContext>,
    /// `None` for the default TTL.
    ttl: Option<Result<Ttl>>,
    /// Completed when the log has an event that the default TTL was adapted.
    ttl_is_adapted: Once,
    runtime: OnceLock<Handle>,
    /// Whether that runtime has a timer. Determined once.
    has_timer: OnceLock<bool>,
    closed: OnceCell<Result<()>>,
    background_releases: Arc<BackgroundReleases>,
    tasks: TaskTracker,
    next_hold: AtomicU64,
}

impl Client {
    pub(crate) fn next_hold_id(&self) -> u64 {
        self.next_hold.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.context.closing.is_cancelled()
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "the client is closed; create a new one")
            .with_backend(self.capabilities.backend)
    }

    /// Returns the error of an acquisition if the client is closed or drains.
    pub(crate) fn refusal(&self) -> Option<Error> {
        if self.is_closed() {
            return Some(self.closed());
        }
        self.context.draining.is_cancelled().then(|| {
            Error::new(
                ErrorKind::Closed,
                "the client drains and acquires no new locks; create a new one",
            )
            .with_backend(self.capabilities.backend)
        })
    }

    /// Returns the capabilities: those of the server once it is known, provisional ones before.
    fn capabilities(&self) -> &Capabilities {
        if !self.capabilities.provisional {
            return &self.capabilities;
        }
        if self.final_capabilities.get().is_none() {
            let now = self.backend.capabilities();
            if now.provisional {
                return &self.capabilities;
            }
            drop(self.final_capabilities.set(now));
        }
        self.final_capabilities.get().unwrap_or(&self.capabilities)
    }

    /// Checks that an acquisition may start. Returns its TTL.
    pub(crate) fn check(&self, spec: &Spec) -> Result<Ttl> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        self.check_runtime()?;
        let ttl = match &spec.ttl {
            Some(ttl) => ttl.clone()?,
            None => self.default_ttl(),
        };
        self.capabilities().check(spec.mode, ttl)?;
        Ok(ttl)
    }

    /// Returns the TTL nearest to [`Ttl::DEFAULT`] in the backend's range.
    fn default_ttl(&self) -> Ttl {
        let capabilities = self.capabilities();
        let ttl = Ttl::DEFAULT
            .max(capabilities.min_ttl)
            .min(capabilities.max_ttl);
        if ttl != Ttl::DEFAULT {
            self.ttl_is_adapted.call_once(|| {
                contain(|| {
                    tracing::debug!(
                        target: "leasehold",
                        backend = capabilities.backend,
                        %ttl,
                        "the default TTL of {} is outside the backend's range",
                        Ttl::DEFAULT
                    );
                });
            });
        }
        ttl
    }

    /// Implements [`LockClient::drain`].
    async fn drain(&self) {
        self.context.draining.cancel();
        self.queues.close();
        self.renewer.emptied().await;
        // A lock that is granted from now on is released at once.
        self.renewer.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Implements [`LockClient::close`]. Called once.
    async fn close(&self) -> Result<()> {
        self.queues.close();
        for hold in self.renewer.all() {
            // This releases the lock in the background, which is awaited below.
            hold.lose(LossReason::ClientClosed);
        }
        self.renewer.stop();
        self.tasks.close();
        // A caller may have stopped polling its acquisition, which then never ends.
        drop(timeout(CLOSE_TIMEOUT, self.tasks.wait()).await);
        self.backend.close().await
    }

    fn check_usable(&self) -> Result<()> {
        if self.is_closed() {
            return Err(self.closed());
        }
        self.check_runtime()
    }

    fn check_runtime(&self) -> Result<()> {
        let here = runtime::current()?;
        let ours = self.runtime.get_or_init(|| here.clone());
        if ours.id() != here.id() {
            return Err(Error::new(
                ErrorKind::WrongRuntime,
                "this client belongs to another tokio runtime, on which it was created or first used, and where its connection and \
                 its renewals live; create a client per runtime",
            ));
        }
        if !*self.has_timer.get_or_init(runtime::has_timer) {
            return Err(runtime::without_timer());
        }
        Ok(())
    }

    /// Drives an operation to completion in the background, if the client's runtime is alive. It
    /// never panics or blocks, and may be called outside of the runtime.
    ///
    /// On the client's runtime the operation is first polled once in place, so that a backend which
    /// answers at once leaves no task behind. A backend in this process is polled on any thread, so
    /// that its locks are free at once even if the runtime has ended.
    pub(crate) fn in_background(&self, operation: impl Future<Output = ()> + Send + 'static) {
        let mut operation: BoxFuture<'static, ()> = Box::pin(self.tasks.track_future(operation));
        let here = Handle::try_current().ok();
        let ours = self.runtime.get();
        // A second panic during a panic would abort the process.
        let on_ours = || here.is_some_and(|here| ours.is_some_and(|ours| ours.id() == here.id()));
        if !std::thread::panicking() && (is_in_this_process(&self.capabilities) || on_ours()) {
            // The backend may spawn tasks, so the runtime is entered.
            let poll = || {
                let _entered = ours.map(Handle::enter);
                poll_once(operation)
            };
            match catch_unwind(AssertUnwindSafe(poll)) {
                Ok(None) => return,
                Ok(Some(rest)) => operation = rest,
                Err(_panic) => {
                    contain(|| {
                        tracing::error!(
                            target: "leasehold",
                            backend = self.capabilities.backend,
                            "the backend panicked in the background; a lock that was to be released expires"
                        );
                    });
                    return;
                }
            }
        }
        let counted = self.background_releases.enter();
        self.spawn(async move {
            operation.await;
            drop(counted);
        });
    }

    /// Runs a task that [`close`](Self::close) stops and waits for.
    pub(crate) fn spawn_tracked(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(self.tasks.track_future(task));
    }

    /// Waits until there is room for another operation in the background, for at most `limit`.
    pub(crate) async fn room_in_background(&self, limit: Option<Duration>) {
        match limit {
            _ if self.background_releases.has_room() => {}
            Some(limit) => drop(timeout(limit, self.background_releases.room()).await),
            None => self.background_releases.room().await,
        }
    }

    /// Returns a token for an operation that is polled in place. Closing waits until it is dropped.
    pub(crate) fn under_way(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Runs a task that [`close`](Self::close) does not wait for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.runtime.get() {
            drop(runtime.spawn(work));
        }
    }
}

/// Polls an operation once, and returns it if it is not complete. It must be polled again, with a
/// real waker.
fn poll_once(mut operation: BoxFuture<'static, ()>) -> Option<BoxFuture<'static, ()>> {
    // The task that drops a guard may have used up its tokio budget. That must not delay a release.
    let polled =
        pin!(unconstrained(operation.as_mut())).poll(&mut Context::from_waker(Waker::noop()));
    polled.is_pending().then_some(operation)
}

impl Drop for Client {
    fn drop(&mut self) {
        self.renewer.stop();
    }
}

//! [`LockClient`]: where locks come from.

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

/// How long [`LockClient::close`] waits for what is under way.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

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
pub struct LockClient(Arc<Client>);

impl LockClient {
    /// A client of this backend, with the defaults.
    #[must_use]
    pub fn new(backend: impl LockBackend) -> Self {
        Self::builder(backend).build()
    }

    /// A client of this backend, to be configured.
    pub fn builder(backend: impl LockBackend) -> LockClientBuilder {
        LockClientBuilder {
            backend: Arc::new(backend),
            ttl: None,
            label: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// The lock of this name. Nothing is sent until it is locked; an invalid name is an error then.
    pub fn mutex<K>(&self, key: K) -> LockMutex
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        LockMutex::new(Arc::clone(&self.0), self.spec(key, Mode::Exclusive))
    }

    /// The read-write lock of this name. Its write lock is the same lock as the
    /// [`mutex`](Self::mutex) of the name.
    pub fn rwlock<K>(&self, key: K) -> RwLock
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        RwLock::new(Arc::clone(&self.0), self.spec(key, Mode::Exclusive))
    }

    /// The semaphore of this name, with this many permits. All who use the name must say the same
    /// number; another number is [`ErrorKind::Conflict`] while permits are held. Zero is
    /// [`ErrorKind::InvalidInput`] when it is acquired.
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

    /// Returns the error of a wait for what another task of this client was about to be granted;
    /// none if the lock was held meanwhile.
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
        &self.0.backend
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
    /// [`ErrorKind::Unsupported`] if the backend cannot; otherwise as the backend fails.
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

    /// Takes no new locks from now on, and waits until the last lock is released. For a program
    /// that shuts down: [`close`](Self::close) would take the locks away from work that is under
    /// way.
    ///
    /// From the first poll on, acquisitions that begin or wait fail with [`ErrorKind::Closed`], on
    /// all clones of the client. Holders keep their locks, which are renewed as before, and release
    /// them when they are done. A lock that is entered again within its [`ReentrantOwner`] is
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
    /// to [`LossReason::ClientClosed`] and their locks released, what is under way ends, the
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
        self.0.check_runtime()?;
        let client = Arc::clone(&self.0);
        // From here on everything is refused, and it goes on if we are dropped.
        client.context.closing.cancel();
        let closing =
            tokio::spawn(async move { client.closed.get_or_init(|| client.close()).await.clone() });
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
        self.0.backend.fmt(f)
    }
}

/// Makes a [`LockClient`].
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
    /// Sets the TTL of locks that have none of their own: a [`Duration`] or a [`Ttl`].
    ///
    /// Without it, that is [`Ttl::DEFAULT`], or what is nearest to it in the backend's range. A TTL
    /// that is set here is not adapted: if it is not valid, or the backend cannot do it, then using
    /// a lock fails with [`ErrorKind::InvalidInput`].
    pub fn with_ttl<T>(mut self, ttl: T) -> Self
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        self.ttl = Some(ttl.try_into().map_err(Error::from));
        self
    }

    /// Sets the label of locks that have none of their own, for people who inspect locks.
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the clock. For tests.
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
            settled: OnceLock::new(),
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

/// The runtime of the backend's connection. A backend in this process has none.
fn runtime_of(capabilities: &Capabilities) -> Option<Handle> {
    Handle::try_current()
        .ok()
        .filter(|_| !is_in_this_process(capabilities))
}

/// A backend that ends with its holders is a part of this process.
fn is_in_this_process(capabilities: &Capabilities) -> bool {
    capabilities.restart == Restart::EndsHolders
}

/// What the clones of a client, its primitives and its guards share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) backend: Arc<dyn LockBackend>,
    /// Those of when the client was built; see [`capabilities`](Self::capabilities).
    pub(crate) capabilities: Capabilities,
    /// Those that replaced provisional ones.
    settled: OnceLock<Capabilities>,
    pub(crate) queues: Arc<LocalQueues>,
    pub(crate) renewer: Arc<Renewer>,
    pub(crate) context: Arc<RequestContext>,
    /// `None` is the default.
    ttl: Option<Result<Ttl>>,
    /// Whether it was said that the default is not used.
    ttl_is_adapted: Once,
    runtime: OnceLock<Handle>,
    /// Whether that runtime has a timer; asked once.
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
        Error::new(ErrorKind::Closed, "the client is closed; make a new one")
            .with_backend(self.capabilities.backend)
    }

    /// The error of an acquisition, if the client takes no new locks.
    pub(crate) fn refusal(&self) -> Option<Error> {
        if self.is_closed() {
            return Some(self.closed());
        }
        self.context.draining.is_cancelled().then(|| {
            Error::new(
                ErrorKind::Closed,
                "the client drains and takes no new locks; make a new one",
            )
            .with_backend(self.capabilities.backend)
        })
    }

    /// The capabilities, as far as the server is known.
    fn capabilities(&self) -> &Capabilities {
        if !self.capabilities.provisional {
            return &self.capabilities;
        }
        if self.settled.get().is_none() {
            let now = self.backend.capabilities();
            if now.provisional {
                return &self.capabilities;
            }
            drop(self.settled.set(now));
        }
        self.settled.get().unwrap_or(&self.capabilities)
    }

    /// Returns the TTL of an acquisition, if it may start.
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

    /// Returns what is nearest to [`Ttl::DEFAULT`] in the backend's range.
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
                        "the default TTL of {} is outside of what the backend can do",
                        Ttl::DEFAULT
                    );
                });
            });
        }
        ttl
    }

    /// What [`LockClient::drain`] does.
    async fn drain(&self) {
        self.context.draining.cancel();
        self.queues.close();
        self.renewer.emptied().await;
        // What is granted from now on is given back at once.
        self.renewer.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What [`LockClient::close`] does, once.
    async fn close(&self) -> Result<()> {
        self.queues.close();
        for hold in self.renewer.all() {
            // It releases in the background, which is waited for below.
            hold.lose(LossReason::ClientClosed);
        }
        self.renewer.stop();
        self.tasks.close();
        // A caller may have stopped polling its acquisition, which then never ends.
        drop(timeout(CLOSE_PATIENCE, self.tasks.wait()).await);
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
                "this client belongs to another tokio runtime, on which it was made or first used, and where its connection and its \
                 renewals live; make a client per runtime",
            ));
        }
        if !*self.has_timer.get_or_init(runtime::has_timer) {
            return Err(runtime::without_timer());
        }
        Ok(())
    }

    /// Completes an operation that ends by itself, if the runtime lives. Never panics or blocks,
    /// and works outside of the runtime.
    ///
    /// On the runtime the operation is polled once here, so a backend that answers at once leaves
    /// no task behind. A backend in this process is polled wherever we are: its locks are free at
    /// once, also if the runtime has ended.
    pub(crate) fn in_background(&self, operation: impl Future<Output = ()> + Send + 'static) {
        let mut operation: BoxFuture<'static, ()> = Box::pin(self.tasks.track_future(operation));
        let here = Handle::try_current().ok();
        let ours = self.runtime.get();
        // In a panic a second one would end the process.
        let on_ours = || here.is_some_and(|here| ours.is_some_and(|ours| ours.id() == here.id()));
        if !std::thread::panicking() && (is_in_this_process(&self.capabilities) || on_ours()) {
            // The backend may start tasks, wherever we are.
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

    /// `close` waits for as long as it lives: for what is polled in place.
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
    // The task that drops a guard may have used up its budget; this is not its work.
    let polled =
        pin!(unconstrained(operation.as_mut())).poll(&mut Context::from_waker(Waker::noop()));
    polled.is_pending().then_some(operation)
}

impl Drop for Client {
    fn drop(&mut self) {
        self.renewer.stop();
    }
}

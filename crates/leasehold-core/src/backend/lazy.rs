//! [`LazyBackend`]: a backend that connects when it is first used.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;
use futures_util::{FutureExt, future::Shared};

use crate::{
    backend::{
        attempt::Attempt,
        capability::Capabilities,
        contract::LockBackend,
        inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
        lease::{BoxFuture, Lease},
        record::{RecordRead, RecordReading},
        request::Request,
        retry::{RetryBudget, cancelled, sleep_unless_cancelled},
    },
    error::{Error, ErrorKind, Result},
    key::LockKey,
    panics::contained,
};

/// A backend that connects when it is first used, so that a program can start while its server is
/// down.
///
/// It works with every backend. `leasehold::connect_lazily` creates one from a URL.
///
/// # Guaranteed
/// - Nothing is sent before the first use.
/// - At most one connection attempt runs at a time. All operations that need the connection wait
///   for it.
/// - While the server cannot be reached, an operation fails with [`ErrorKind::Unavailable`] and the
///   cause. The next operation tries to connect again. A waiting acquisition retries for up to one
///   TTL, as [`Mutex::lock`](crate::Mutex::lock) documents. An error that another attempt would not
///   change, such as [`ErrorKind::Denied`], is returned at once.
/// - Once connected, every operation is the backend's own.
///
/// # Capabilities
/// Until the connection is made, the [capabilities](Capabilities) are those passed to
/// [`new`](Self::new), marked as [provisional](Capabilities::provisional). Then they are the
/// backend's own.
///
/// # Quorum nodes
/// A lazy backend cannot be a voting node of a quorum, because it does not know whether its backend
/// votes on fencing tokens. Connect to the whole quorum lazily instead.
///
/// # Cancel safety
/// An operation may be dropped while it waits for the connection. The connection attempt continues.
///
/// ```
/// use leasehold_core::{LockClient, backend::{LazyBackend, LockBackend}};
/// use leasehold_local::MemoryBackend;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// let capabilities = MemoryBackend::new().capabilities();
/// let client = LockClient::new(LazyBackend::new(capabilities, || async { Ok(MemoryBackend::new()) }));
/// assert!(client.capabilities().provisional);
/// let guard = client.mutex("item/42").lock().await?; // connects
/// assert!(!client.capabilities().provisional);
/// # drop(guard);
/// # Ok(()) }
/// ```
pub struct LazyBackend(Arc<Inner>);

type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn LockBackend>>> + Send + Sync>;
type Connecting = Shared<BoxFuture<'static, Result<Arc<dyn LockBackend>>>>;

struct Inner {
    provisional: Capabilities,
    connect: Connect,
    backend: OnceLock<Arc<dyn LockBackend>>,
    state: Mutex<State>,
}

enum State {
    Idle,
    /// An attempt is running, or has succeeded.
    Connecting(Connecting),
    Closed,
}

impl LazyBackend {
    /// Creates a backend that calls `connect` when it is first used, and again after each failure.
    ///
    /// `capabilities` must be the weakest promises of any server that `connect` may reach, with the
    /// widest range of TTLs. A client reads [`drift`](Capabilities::drift) and
    /// [`pipelined_release`](Capabilities::pipelined_release) only once, so both must hold for
    /// every such server.
    ///
    /// Each attempt must end: give it a timeout.
    pub fn new<F, Fut, B>(capabilities: Capabilities, connect: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<B>> + Send + 'static,
        B: LockBackend,
    {
        let connect: Connect = Box::new(move || {
            let connecting = connect();
            Box::pin(async move { Ok(Arc::new(connecting.await?) as Arc<dyn LockBackend>) })
        });
        Self(Arc::new(Inner {
            provisional: Capabilities {
                provisional: true,
                ..capabilities
            },
            connect,
            backend: OnceLock::new(),
            state: Mutex::new(State::Idle),
        }))
    }
}

impl Inner {
    /// Returns the backend, connecting first if necessary.
    async fn connected(self: &Arc<Self>) -> Result<Arc<dyn LockBackend>> {
        match self.backend.get() {
            Some(backend) => Ok(Arc::clone(backend)),
            None => self.connecting()?.await,
        }
    }

    /// Returns the running attempt, or starts one.
    fn connecting(self: &Arc<Self>) -> Result<Connecting> {
        let mut state = self.state();
        match &*state {
            State::Connecting(connecting) => Ok(connecting.clone()),
            State::Closed => Err(self.closed()),
            State::Idle => {
                let connecting = Arc::clone(self).connect().boxed().shared();
                // Spawned, so that the attempt ends even if no caller waits for it.
                drop(tokio::spawn(connecting.clone()));
                *state = State::Connecting(connecting.clone());
                Ok(connecting)
            }
        }
    }

    async fn connect(self: Arc<Self>) -> Result<Arc<dyn LockBackend>> {
        let opened = contained(async { (self.connect)().await }).await;
        let is_closed = {
            let mut state = self.state();
            match (&mut *state, &opened) {
                (State::Closed, _) => true,
                (_, Ok(backend)) => {
                    drop(self.backend.set(Arc::clone(backend)));
                    false
                }
                (state, Err(_)) => {
                    *state = State::Idle;
                    false
                }
            }
        };
        if is_closed {
            if let Ok(backend) = opened {
                drop(contained(backend.close()).await);
            }
            return Err(self.closed());
        }
        opened.map_err(|error| self.unavailable(error))
    }

    /// Returns the error of an operation that could not begin. The operation had no effect, even if
    /// the outcome of the connection attempt is unknown.
    fn unavailable(&self, error: Error) -> Error {
        let backend = error.backend().unwrap_or(self.provisional.backend);
        let error = error.with_backend(backend);
        if error.kind() != ErrorKind::Indeterminate {
            return error;
        }
        Error::new(ErrorKind::Unavailable, error.message().to_owned())
            .with_backend(backend)
            .with_operation("connect")
            .with_source(error)
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "the backend was closed")
            .with_backend(self.provisional.backend)
            .with_operation("connect")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while the mutex is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LockBackend for LazyBackend {
    fn capabilities(&self) -> Capabilities {
        match self.0.backend.get() {
            Some(backend) => backend.capabilities(),
            None => self.0.provisional.clone(),
        }
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let backend = self.0.connected().await?;
        check(&*backend, &request)?;
        backend.try_acquire(request).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        if let Some(backend) = self.0.backend.get() {
            check(&**backend, &request)?;
            return Arc::clone(backend).acquire(request).await;
        }
        let mut retries = RetryBudget::none();
        let backend = loop {
            let connected = tokio::select! {
                biased;
                () = request.cancelled() => return Err(cancelled()),
                connected = self.0.connected() => connected,
            };
            match connected {
                Ok(backend) => break backend,
                Err(error) => retries.spend(error, &request)?,
            }
            sleep_unless_cancelled(&request, retries.pause()).await;
        };
        check(&*backend, &request)?;
        backend.acquire(request).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.0.connected().await?.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.0.connected().await?.revoke(holder, revocation).await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        let backend = self.0.connected().await?;
        backend.capabilities().check_records()?;
        backend.read_record(read).await
    }

    async fn ping(&self) -> Result<Pong> {
        self.0.connected().await?.ping().await
    }

    async fn close(&self) -> Result<()> {
        let before = std::mem::replace(&mut *self.0.state(), State::Closed);
        match (self.0.backend.get(), before) {
            (Some(backend), _) => backend.close().await,
            (None, State::Connecting(connecting)) => {
                // The attempt closes the connection that it opens.
                drop(connecting.await);
                Ok(())
            }
            (None, State::Idle | State::Closed) => Ok(()),
        }
    }
}

/// Checks a request against the capabilities of the server. The client may have checked it against
/// the provisional ones, which allow more.
fn check(backend: &dyn LockBackend, request: &Request) -> Result<()> {
    backend.capabilities().check(request.mode(), request.ttl())
}

impl fmt::Display for LazyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.backend.get() {
            Some(backend) => backend.fmt(f),
            None => f.write_str(&self.0.provisional.endpoint),
        }
    }
}

impl fmt::Debug for LazyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyBackend")
            .field("endpoint", &self.0.provisional.endpoint)
            .field("backend", &self.0.backend.get())
            .finish_non_exhaustive()
    }
}

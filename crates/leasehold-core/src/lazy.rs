//! [`LazyBackend`]: a backend that connects when it is first used.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;
use futures_util::{FutureExt, future::Shared};

use crate::{
    backend::{Attempt, BoxFuture, Lease, LockBackend},
    capability::Capabilities,
    error::{Error, ErrorKind, Result},
    inspection::{HolderRef, Inspection, Pong, Revocation, RevokeOutcome},
    key::LockKey,
    panics::contained,
    request::Request,
    retry::{cancelled, sleep_unless_cancelled},
    retry_budget::RetryBudget,
};

/// A backend that connects when it is first used, so that a program starts while its server is
/// down.
///
/// It works with every backend. `leasehold::connect_lazily` makes one of a URL.
///
/// # Guaranteed
/// - Nothing is sent before the first use.
/// - One attempt to connect is under way at a time. All operations that need the connection wait
///   for it.
/// - While the server cannot be reached, an operation fails with [`ErrorKind::Unavailable`] and the
///   cause. The next operation tries to connect again. An acquisition that waits tries again for up
///   to a TTL, as [`Mutex::lock`](crate::Mutex::lock) documents. An error that no other attempt
///   would change, such as [`ErrorKind::Denied`], is returned at once.
/// - Once it is connected, every operation is the backend's own.
///
/// # Capabilities
/// Until it is connected, the [capabilities](Capabilities) are those given to [`new`](Self::new),
/// marked as [provisional](Capabilities::provisional). From then on they are the backend's own.
///
/// # Not for nodes of a quorum
/// It does not vote on fencing tokens, because it does not know whether the backend does. Connect
/// to a whole quorum lazily instead.
///
/// # Cancel safety
/// An operation may be dropped while it waits for the connection. The attempt to connect continues.
///
/// ```
/// use leasehold_core::{LazyBackend, LockBackend, LockClient};
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
    /// An attempt is under way, or has succeeded.
    Connecting(Connecting),
    Closed,
}

impl LazyBackend {
    /// Creates a backend that calls `connect` when it is first used, and again after each failure.
    ///
    /// `capabilities` are the weakest promises of any server that `connect` may lead to, with the
    /// widest range of TTLs. A client reads [`drift`](Capabilities::drift) and
    /// [`pipelined_release`](Capabilities::pipelined_release) only once, so both must be true of
    /// every server.
    ///
    /// An attempt must end: give it a time-out.
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
    /// Returns the backend, and connects if it is not connected.
    async fn connected(self: &Arc<Self>) -> Result<Arc<dyn LockBackend>> {
        match self.backend.get() {
            Some(backend) => Ok(Arc::clone(backend)),
            None => self.connecting()?.await,
        }
    }

    /// Returns the attempt that is under way, or starts one.
    fn connecting(self: &Arc<Self>) -> Result<Connecting> {
        let mut state = self.state();
        match &*state {
            State::Connecting(connecting) => Ok(connecting.clone()),
            State::Closed => Err(self.closed()),
            State::Idle => {
                let connecting = Arc::clone(self).connect().boxed().shared();
                // Spawned, so that it ends although no caller waits for it.
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

    /// The error of an operation that could not begin. It had no effect, whatever became of the
    /// attempt to connect.
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
        // Nothing panics while it is held.
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
        self.0.connected().await?.try_acquire(request).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        if let Some(backend) = self.0.backend.get() {
            return Arc::clone(backend).acquire(request).await;
        }
        let mut trouble = RetryBudget::none();
        let backend = loop {
            let connected = tokio::select! {
                biased;
                () = request.cancelled() => return Err(cancelled()),
                connected = self.0.connected() => connected,
            };
            match connected {
                Ok(backend) => break backend,
                Err(error) => trouble.spend(error, &request)?,
            }
            sleep_unless_cancelled(&request, trouble.pause()).await;
        };
        backend.acquire(request).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.0.connected().await?.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.0.connected().await?.revoke(holder, revocation).await
    }

    async fn ping(&self) -> Result<Pong> {
        self.0.connected().await?.ping().await
    }

    async fn close(&self) -> Result<()> {
        let before = std::mem::replace(&mut *self.0.state(), State::Closed);
        match (self.0.backend.get(), before) {
            (Some(backend), _) => backend.close().await,
            (None, State::Connecting(connecting)) => {
                // It closes what it opens.
                drop(connecting.await);
                Ok(())
            }
            (None, State::Idle | State::Closed) => Ok(()),
        }
    }
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

//! [`LockClientBuilder`]: the options of a client.

use std::sync::Arc;

use crate::{
    backend::{contract::LockBackend, request::RequestContext},
    client::{engine::Client, handle::LockClient, lock_order::LockOrder},
    clock::{Clock, SystemClock},
    context::ClientContext,
    error::{Error, Result},
    label::default_label,
    telemetry,
    ttl::Ttl,
};

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
            order_warnings: cfg!(debug_assertions),
        }
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
    order_warnings: bool,
}

impl LockClientBuilder {
    /// Sets the default TTL for locks created by this client, as a
    /// [`Duration`](std::time::Duration) or a [`Ttl`].
    ///
    /// Defaults to [`Ttl::DEFAULT`], or the nearest value in the backend's range, also for a client
    /// that connects [lazily](crate::backend::LazyBackend). A TTL that is set
    /// here is not adapted: if it is invalid or outside the backend's range, acquisitions fail with
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
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

    /// Sets whether the client warns of tasks that lock the same keys in different orders, so that
    /// they can wait for each other forever. Defaults to `true` in debug builds and to `false` in
    /// release builds.
    ///
    /// When a task waits for a key while it holds another, the client remembers the pair. The
    /// warning is an event of `tracing`, once for each pair of keys, also if the tasks have not
    /// met. No outcome changes. [`LockClient::all`] locks several keys without this danger.
    ///
    /// Only the locks of this client are seen, and only as those of the task that acquired them.
    /// Futures that run concurrently within one task count as that task. Permits of semaphores, and
    /// attempts that do not wait, are not considered. The first 16 locks that a task holds are
    /// compared, and at most 10 000 pairs are remembered.
    ///
    /// ```
    /// # use leasehold_local::MemoryBackend;
    /// # use leasehold_core::LockClient;
    /// let client = LockClient::builder(MemoryBackend::new())
    ///     .with_order_warnings(true)
    ///     .build();
    /// ```
    pub fn with_order_warnings(mut self, warn: bool) -> Self {
        self.order_warnings = warn;
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
            order_warnings,
        } = self;
        telemetry::describe();
        let capabilities = backend.capabilities();
        telemetry::begin_counting(capabilities.backend);
        let requests = RequestContext {
            label: label.unwrap_or_else(default_label),
            clock: Arc::clone(&clock),
            drift: capabilities.drift,
            losses: Arc::default(),
            closing: Arc::default(),
            draining: Arc::default(),
        };
        let context = ClientContext::new(backend, capabilities, requests);
        let order = order_warnings.then(LockOrder::default);
        LockClient(Arc::new(Client::new(Arc::new(context), ttl, order)))
    }
}

//! [`Wrapping`]: a way to reach the backend under test.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use leasehold_core::{
    Capabilities, Clock, HolderRef, Inspection, LockKey, Pong, Result, Revocation, RevokeOutcome,
    Ttl,
    backend::{Attempt, Lease, LockBackend, RecordRead, RecordReading, Request},
};

use crate::backend_fixture::BackendFixture;

/// A way to reach the backend under test. Each property must hold in all of them.
///
/// ```
/// use leasehold_testkit::{BackendFixture, Wrapped, Wrapping, mutants::ModelFixture};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let fixture = ModelFixture::healthy();
/// for wrapping in Wrapping::ALL {
///     let backend = Wrapped::new(&fixture, wrapping).open().await;
///     assert_eq!(backend.to_string(), "model:");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrapping {
    /// The backend itself, without a wrapper.
    Bare,
    /// The backend as an `Arc<dyn LockBackend>`.
    ArcDyn,
    /// The backend behind [`Forwarding`](struct@Forwarding).
    Forwarding,
}

impl Wrapping {
    /// All wrappings.
    pub const ALL: [Self; 3] = [Self::Bare, Self::ArcDyn, Self::Forwarding];
}

/// The smallest wrapper of a backend, which forwards every method. A wrapper of your own can start
/// from its source.
///
/// ```
/// use leasehold_testkit::{BackendFixture, Forwarding, mutants::ModelFixture};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let backend = ModelFixture::healthy().open().await;
/// let wrapped = Forwarding::new(backend.clone());
/// assert_eq!(wrapped.to_string(), backend.to_string());
/// # }
/// ```
#[derive(Debug)]
pub struct Forwarding<B: ?Sized>(Arc<B>);

impl<B: ?Sized> Forwarding<B> {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<B>) -> Self {
        Self(inner)
    }
}

impl<B: LockBackend + ?Sized> fmt::Display for Forwarding<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", &*self.0)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: LockBackend + ?Sized> LockBackend for Forwarding<B> {
    fn capabilities(&self) -> Capabilities {
        B::capabilities(&self.0)
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        B::try_acquire(Arc::clone(&self.0), request).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        B::acquire(Arc::clone(&self.0), request).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        B::inspect(&self.0, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        B::revoke(&self.0, holder, revocation).await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        B::read_record(Arc::clone(&self.0), read).await
    }

    async fn ping(&self) -> Result<Pong> {
        B::ping(&self.0).await
    }

    async fn close(&self) -> Result<()> {
        B::close(&self.0).await
    }
}

/// A fixture that opens the handles of another fixture in a given [`Wrapping`].
///
/// ```
/// use leasehold_testkit::{BackendFixture, Wrapped, Wrapping, mutants::ModelFixture};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let fixture = ModelFixture::healthy();
/// let wrapped = Wrapped::new(&fixture, Wrapping::Forwarding);
/// assert_eq!(wrapped.open().await.to_string(), fixture.open().await.to_string());
/// # }
/// ```
pub struct Wrapped<'a> {
    fixture: &'a dyn BackendFixture,
    wrapping: Wrapping,
    paused: bool,
}

impl<'a> Wrapped<'a> {
    /// Creates a fixture that opens the handles of `fixture` in `wrapping`.
    #[must_use]
    pub fn new(fixture: &'a dyn BackendFixture, wrapping: Wrapping) -> Self {
        Self {
            fixture,
            wrapping,
            paused: fixture.is_time_paused(),
        }
    }

    /// Sets whether the cases run in paused time. See [`BackendFixture::is_time_paused`].
    #[must_use]
    pub fn in_paused_time(mut self, paused: bool) -> Self {
        self.paused = paused;
        self
    }
}

impl fmt::Debug for Wrapped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped")
            .field("wrapping", &self.wrapping)
            .finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BackendFixture for Wrapped<'_> {
    async fn open(&self) -> Arc<dyn LockBackend> {
        let backend = self.fixture.open().await;
        match self.wrapping {
            Wrapping::Bare => backend,
            Wrapping::ArcDyn => Arc::new(backend),
            Wrapping::Forwarding => Arc::new(Forwarding::new(backend)),
        }
    }

    fn ttl(&self) -> Ttl {
        self.fixture.ttl()
    }

    fn slack(&self) -> Duration {
        self.fixture.slack()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.fixture.clock()
    }

    fn limit(&self) -> Duration {
        self.fixture.limit()
    }

    fn name(&self, hint: &str) -> String {
        self.fixture.name(hint)
    }

    fn is_time_paused(&self) -> bool {
        self.paused
    }

    fn skip_reason(&self, case: &str) -> Option<String> {
        self.fixture.skip_reason(case)
    }
}

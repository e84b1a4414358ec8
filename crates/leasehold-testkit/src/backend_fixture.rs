//! [`BackendFixture`]: the backend under test.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use leasehold_core::{
    AcquisitionId, Clock, SystemClock, Ttl,
    backend::{BoxFuture, LockBackend},
};

/// A store under test, and how to open several independent handles on it.
///
/// Only [`open`](Self::open) has no default. [`FixtureFn`] makes a fixture from a closure.
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::backend::LockBackend;
/// use leasehold_testkit::{BackendFixture, mutants::ModelFixture};
///
/// struct Slow(ModelFixture);
///
/// #[async_trait::async_trait]
/// impl BackendFixture for Slow {
///     async fn open(&self) -> Arc<dyn LockBackend> {
///         self.0.open().await
///     }
///
///     fn limit(&self) -> std::time::Duration {
///         std::time::Duration::from_secs(600)
///     }
/// }
/// ```
#[async_trait]
pub trait BackendFixture: Send + Sync {
    /// Opens a new handle on the *same* store. It shares nothing with other handles in this
    /// process: it has its own connection and its own session. A panic fails the case.
    async fn open(&self) -> Arc<dyn LockBackend>;

    /// Returns the TTL that the cases use. It should be short, because many cases wait until it has
    /// passed, and much longer than a round trip. Defaults to one second.
    fn ttl(&self) -> Ttl {
        Ttl::from_secs(1).unwrap_or_default()
    }

    /// Returns how long after its TTL the store may still hold an expired lock. Defaults to a
    /// quarter of the TTL and 100 ms.
    fn slack(&self) -> Duration {
        self.ttl().as_duration() / 4 + Duration::from_millis(100)
    }

    /// Returns the clock that clients use. Defaults to [`SystemClock`].
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    /// Returns the time limit of one case. A case that takes longer fails. Defaults to 20 TTLs and
    /// one minute.
    fn limit(&self) -> Duration {
        self.ttl().as_duration() * 20 + Duration::from_secs(60)
    }

    /// Returns a new lock name that no other case uses, since cases run in parallel on one server.
    /// `hint` is the case that asks for it.
    fn name(&self, hint: &str) -> String {
        format!("testkit/{hint}/{}", AcquisitionId::random())
    }

    /// Returns `true` if the cases run in tokio's paused time. In real time, a case simulates a
    /// crashed process with a separate runtime; in paused time it cannot.
    /// [`conformance!`](crate::conformance) sets this itself. Defaults to `false`.
    fn is_time_paused(&self) -> bool {
        false
    }

    /// Returns the reason to skip a case that the capabilities allow, or `None` to run it. The
    /// reason is printed.
    fn skip_reason(&self, case: &str) -> Option<String> {
        let _ = case;
        None
    }
}

/// A [`BackendFixture`] made from a closure that opens a handle.
///
/// ```
/// # use leasehold_testkit::{BackendFixture, mutants::ModelFixture};
/// # fn main() -> leasehold_core::Result<()> {
/// # let store = std::sync::Arc::new(ModelFixture::in_real_time());
/// use leasehold_core::Ttl;
/// use leasehold_testkit::FixtureFn;
///
/// let fixture = FixtureFn::new(move || {
///     let store = store.clone();
///     async move { store.open().await }
/// })
/// .with_ttl(Ttl::from_secs(2)?)
/// .without("readers_share", "the store has no shared locks");
/// # let _ = fixture;
/// # Ok(())
/// # }
/// ```
pub struct FixtureFn {
    open: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn LockBackend>> + Send + Sync>,
    ttl: Ttl,
    slack: Option<Duration>,
    clock: Arc<dyn Clock>,
    paused: bool,
    skipped: Vec<(String, String)>,
}

impl FixtureFn {
    /// Creates a fixture whose handles `open` opens, with the defaults of [`BackendFixture`].
    pub fn new<F, Fut>(open: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Arc<dyn LockBackend>> + Send + 'static,
    {
        Self {
            open: Box::new(move || Box::pin(open())),
            ttl: Ttl::from_secs(1).unwrap_or_default(),
            slack: None,
            clock: Arc::new(SystemClock),
            paused: false,
            skipped: Vec::new(),
        }
    }

    /// Sets the TTL that the cases use. See [`BackendFixture::ttl`].
    #[must_use]
    pub fn with_ttl(mut self, ttl: Ttl) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how long after its TTL a lock may still be held. See [`BackendFixture::slack`].
    #[must_use]
    pub fn with_slack(mut self, slack: Duration) -> Self {
        self.slack = Some(slack);
        self
    }

    /// Sets the clock that clients use. See [`BackendFixture::clock`].
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Declares that the cases run in paused time. See [`BackendFixture::is_time_paused`].
    #[must_use]
    pub fn in_paused_time(mut self) -> Self {
        self.paused = true;
        self
    }

    /// Skips a case and prints the reason. See [`BackendFixture::skip_reason`].
    #[must_use]
    pub fn without(mut self, case: impl Into<String>, reason: impl Into<String>) -> Self {
        self.skipped.push((case.into(), reason.into()));
        self
    }
}

impl std::fmt::Debug for FixtureFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FixtureFn")
            .field("ttl", &self.ttl)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl BackendFixture for FixtureFn {
    async fn open(&self) -> Arc<dyn LockBackend> {
        (self.open)().await
    }

    fn ttl(&self) -> Ttl {
        self.ttl
    }

    fn slack(&self) -> Duration {
        self.slack
            .unwrap_or_else(|| self.ttl.as_duration() / 4 + Duration::from_millis(100))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn is_time_paused(&self) -> bool {
        self.paused
    }

    fn skip_reason(&self, case: &str) -> Option<String> {
        self.skipped
            .iter()
            .find(|(name, _)| name == case)
            .map(|(_, reason)| reason.clone())
    }
}

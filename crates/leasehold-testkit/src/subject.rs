//! [`Subject`]: what is tested.

use leasehold_core::backend::{BoxFuture, LockBackend};

/// A store, and how to reach it as several processes would.
///
/// Only [`open`](Self::open) has no default. [`SubjectOf`] makes a subject of a closure.
#[async_trait]
pub trait Subject: Send + Sync {
    /// A new handle on the *same* store, which shares nothing with the earlier ones in this
    /// process: its own connection, its own session. What it panics with fails the case.
    async fn open(&self) -> Arc<dyn LockBackend>;

    /// The TTL that the cases use: short, because cases wait for it to pass, but long beside a
    /// round trip.
    fn ttl(&self) -> Ttl {
        Ttl::from_secs(1).unwrap_or_default()
    }

    /// How much later than its TTL an expired lock may be granted to another.
    fn slack(&self) -> Duration {
        self.ttl().as_duration() / 4 + Duration::from_millis(100)
    }

    /// The clock that clients use.
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    /// After this long a case has failed.
    fn limit(&self) -> Duration {
        self.ttl().as_duration() * 20 + Duration::from_secs(60)
    }

    /// A lock name that nobody else uses; `hint` is the case. Cases run in parallel on one server.
    fn name(&self, hint: &str) -> String {
        format!("testkit/{hint}/{}", AcquisitionId::random())
    }

    /// Whether time is tokio's paused time. Only in real time can a case act another process by a
    /// runtime of its own. [`conformance!`](crate::conformance) knows by itself.
    fn is_time_paused(&self) -> bool {
        false
    }

    /// Why this case is not run although the capabilities say that it could be. It is printed, as
    /// every reason is.
    fn excuse(&self, case: &str) -> Option<String> {
        let _ = case;
        None
    }
}

/// A subject made of a closure that opens a handle, with the defaults or what is set.
///
/// ```
/// # fn _f(backend: impl Fn() -> std::sync::Arc<dyn leasehold_core::backend::LockBackend> + Send + Sync + 'static)
/// # -> leasehold_core::Result<leasehold_testkit::SubjectOf> {
/// use leasehold_core::Ttl;
/// use leasehold_testkit::SubjectOf;
///
/// let subject = SubjectOf::new(move || { let backend = backend(); async move { backend } }).with_ttl(Ttl::from_secs(2)?);
/// # Ok(subject) }
/// ```
pub struct SubjectOf {
    open: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn LockBackend>> + Send + Sync>,
    ttl: Ttl,
    slack: Option<Duration>,
    clock: Arc<dyn Clock>,
    paused: bool,
    excuses: Vec<(String, String)>,
}

impl SubjectOf {
    /// A subject whose handles `open` makes, with a TTL of a second and the system's clock.
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
            excuses: Vec::new(),
        }
    }

    /// See [`Subject::ttl`].
    #[must_use]
    pub fn with_ttl(mut self, ttl: Ttl) -> Self {
        self.ttl = ttl;
        self
    }

    /// See [`Subject::slack`].
    #[must_use]
    pub fn with_slack(mut self, slack: Duration) -> Self {
        self.slack = Some(slack);
        self
    }

    /// See [`Subject::clock`].
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// See [`Subject::is_time_paused`].
    #[must_use]
    pub fn in_paused_time(mut self) -> Self {
        self.paused = true;
        self
    }

    /// See [`Subject::excuse`].
    #[must_use]
    pub fn without(mut self, case: impl Into<String>, reason: impl Into<String>) -> Self {
        self.excuses.push((case.into(), reason.into()));
        self
    }
}

impl std::fmt::Debug for SubjectOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SubjectOf")
            .field("ttl", &self.ttl)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Subject for SubjectOf {
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

    fn excuse(&self, case: &str) -> Option<String> {
        self.excuses
            .iter()
            .find(|(name, _)| name == case)
            .map(|(_, reason)| reason.clone())
    }
}

//! [`Form`]: the same backend, reached in another way.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use leasehold_core::{
    Attempt, Capabilities, Clock, HolderRef, Inspection, Lease, LockBackend, LockKey, Pong,
    Request, Result, Revocation, RevokeOutcome, Ttl,
};

use crate::subject::Subject;

/// How a backend is reached: a property must hold in every form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The backend itself.
    Itself,
    /// An `Arc<dyn LockBackend>` as a backend.
    AsArcDyn,
    /// [`Forwarding`] to the backend.
    Forwarded,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Itself, Self::AsArcDyn, Self::Forwarded];
}

/// The smallest wrapper: forwards every method. What a wrapper of yours looks like before it does
/// anything.
#[derive(Debug)]
pub struct Forwarding<B: ?Sized>(Arc<B>);

impl<B: ?Sized> Forwarding<B> {
    /// Wraps a backend.
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

    async fn ping(&self) -> Result<Pong> {
        B::ping(&self.0).await
    }

    async fn close(&self) -> Result<()> {
        B::close(&self.0).await
    }
}

/// A subject whose handles come in this form.
pub struct InForm<'a> {
    subject: &'a dyn Subject,
    form: Form,
    paused: bool,
}

impl<'a> InForm<'a> {
    /// Opens what `subject` opens, in this form.
    #[must_use]
    pub fn new(subject: &'a dyn Subject, form: Form) -> Self {
        Self {
            subject,
            form,
            paused: subject.is_time_paused(),
        }
    }

    /// See [`Subject::is_time_paused`].
    #[must_use]
    pub fn in_paused_time(mut self, paused: bool) -> Self {
        self.paused = paused;
        self
    }
}

impl fmt::Debug for InForm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InForm")
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Subject for InForm<'_> {
    async fn open(&self) -> Arc<dyn LockBackend> {
        let backend = self.subject.open().await;
        match self.form {
            Form::Itself => backend,
            Form::AsArcDyn => Arc::new(backend),
            Form::Forwarded => Arc::new(Forwarding::new(backend)),
        }
    }

    fn ttl(&self) -> Ttl {
        self.subject.ttl()
    }

    fn slack(&self) -> Duration {
        self.subject.slack()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.subject.clock()
    }

    fn limit(&self) -> Duration {
        self.subject.limit()
    }

    fn name(&self, hint: &str) -> String {
        self.subject.name(hint)
    }

    fn is_time_paused(&self) -> bool {
        self.paused
    }

    fn excuse(&self, case: &str) -> Option<String> {
        self.subject.excuse(case)
    }
}

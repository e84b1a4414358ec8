//! [`Client`]: what the clones of a client share.

use std::{
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use tokio::{sync::OnceCell, time::timeout};

use crate::{
    backend::capability::Capabilities, client::spec::Spec, context::ClientContext, error::Result,
    lease::held_lease::Schedule, local_queue::LocalQueues, panics::contain, signal::LossReason,
    ttl::Ttl,
};

/// How long `LockClient::close` waits for what is under way.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What the clones of a client and its primitives share. Guards share only its context.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) context: Arc<ClientContext>,
    /// The capabilities that replaced provisional ones.
    settled: OnceLock<Capabilities>,
    pub(crate) queues: Arc<LocalQueues>,
    pub(crate) schedule: Arc<Schedule>,
    /// `None` is the default.
    pub(super) ttl: Option<Result<Ttl>>,
    /// Whether it was said that the default is not used.
    ttl_is_adapted: Once,
    closed: OnceCell<Result<()>>,
}

impl Client {
    pub(super) fn new(context: Arc<ClientContext>, ttl: Option<Result<Ttl>>) -> Self {
        let (requests, stopped) = (&context.requests, context.renewals_stopped.clone());
        Self {
            settled: OnceLock::new(),
            queues: Arc::new(LocalQueues::new(Arc::clone(&requests.clock))),
            schedule: Arc::new(Schedule::new(requests, stopped)),
            ttl,
            ttl_is_adapted: Once::new(),
            closed: OnceCell::new(),
            context,
        }
    }

    /// The capabilities, as far as the server is known.
    pub(super) fn capabilities(&self) -> &Capabilities {
        if !self.context.capabilities.provisional {
            return &self.context.capabilities;
        }
        if self.settled.get().is_none() {
            let now = self.context.backend.capabilities();
            if now.provisional {
                return &self.context.capabilities;
            }
            drop(self.settled.set(now));
        }
        self.settled.get().unwrap_or(&self.context.capabilities)
    }

    /// Returns the TTL of an acquisition, if it may start.
    pub(crate) fn check(&self, spec: &Spec) -> Result<Ttl> {
        if let Some(refusal) = self.context.refusal() {
            return Err(refusal);
        }
        self.context.check_runtime()?;
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

    /// Does what `LockClient::drain` promises.
    pub(super) async fn drain(&self) {
        self.context.requests.draining.cancel();
        self.queues.close();
        self.schedule.emptied().await;
        // What is granted from now on is given back at once.
        self.schedule.stop();
        self.context.tasks.close();
        self.context.tasks.wait().await;
    }

    /// Does what `LockClient::close` promises, once.
    pub(super) async fn close(&self) -> Result<()> {
        self.closed.get_or_init(|| self.close_once()).await.clone()
    }

    async fn close_once(&self) -> Result<()> {
        self.queues.close();
        for hold in self.schedule.all() {
            // It releases in the background, which is waited for below.
            hold.lose(LossReason::ClientClosed);
        }
        self.schedule.stop();
        self.context.tasks.close();
        // A caller may have stopped polling its acquisition, which then never ends.
        drop(timeout(CLOSE_PATIENCE, self.context.tasks.wait()).await);
        self.context.backend.close().await
    }
}

//! [`Client`]: the state shared by the clones of a client; [`Spec`]: what its locks acquire.

use std::{
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use tokio::{sync::OnceCell, time::timeout};

use crate::{
    backend::{capability::Capabilities, request::RequestContext},
    client::lock_order::LockOrder,
    context::ClientContext,
    error::Result,
    key::LockKey,
    lease::held_lease::{Renewal, Schedule},
    local_queue::LocalQueues,
    mode::Mode,
    panics::contain,
    signal::LossReason,
    ttl::Ttl,
};

/// How long `LockClient::close` waits for running operations.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The state shared by the clones of a client and its locks. Guards share only its context.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) context: Arc<ClientContext>,
    /// The capabilities that replaced provisional ones.
    final_capabilities: OnceLock<Capabilities>,
    pub(crate) queues: Arc<LocalQueues>,
    pub(crate) schedule: Arc<Schedule>,
    /// `None` if the client does not warn of locks in different orders.
    pub(crate) order: Option<LockOrder>,
    /// `None` for the default TTL.
    pub(super) ttl: Option<Result<Ttl>>,
    /// Completed when the log has an event that the default TTL was adapted.
    ttl_is_adapted: Once,
    closed: OnceCell<Result<()>>,
}

/// The key, the mode and the options of a lock.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// An invalid key is reported by the first acquisition, so that `client.mutex(key)` returns a
    /// plain value.
    pub(crate) key: Result<LockKey>,
    pub(crate) mode: Mode,
    /// `None` for the default, which adapts to the backend. An invalid TTL is reported by the first
    /// acquisition.
    pub(crate) ttl: Option<Result<Ttl>>,
    pub(crate) renewal: Renewal,
    /// The value of a candidate of an election.
    pub(crate) proposal: Option<Arc<[u8]>>,
    pub(crate) context: Arc<RequestContext>,
}

impl Client {
    pub(super) fn new(
        context: Arc<ClientContext>,
        ttl: Option<Result<Ttl>>,
        order: Option<LockOrder>,
    ) -> Self {
        let (requests, stopped) = (&context.requests, context.renewals_stopped.clone());
        Self {
            final_capabilities: OnceLock::new(),
            queues: Arc::new(LocalQueues::new(Arc::clone(&requests.clock))),
            schedule: Arc::new(Schedule::new(requests, stopped)),
            order,
            ttl,
            ttl_is_adapted: Once::new(),
            closed: OnceCell::new(),
            context,
        }
    }

    /// Returns the capabilities: those of the server once it is known, provisional ones before.
    pub(super) fn capabilities(&self) -> &Capabilities {
        if !self.context.capabilities.provisional {
            return &self.context.capabilities;
        }
        if self.final_capabilities.get().is_none() {
            let now = self.context.backend.capabilities();
            if now.provisional {
                return &self.context.capabilities;
            }
            drop(self.final_capabilities.set(now));
        }
        self.final_capabilities
            .get()
            .unwrap_or(&self.context.capabilities)
    }

    /// Checks that an acquisition may start. Returns its TTL.
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

    /// Implements `LockClient::drain`.
    pub(super) async fn drain(&self) {
        self.context.requests.draining.cancel();
        self.queues.close();
        self.schedule.emptied().await;
        // A lock that is granted from now on is released at once.
        self.schedule.stop();
        self.context.tasks.close();
        self.context.tasks.wait().await;
    }

    /// Implements `LockClient::close`. Called once.
    pub(super) async fn close(&self) -> Result<()> {
        self.closed.get_or_init(|| self.close_once()).await.clone()
    }

    async fn close_once(&self) -> Result<()> {
        self.queues.close();
        for held in self.schedule.all() {
            // This releases the lock in the background, which is awaited below.
            held.lose(LossReason::ClientClosed);
        }
        self.schedule.stop();
        self.context.tasks.close();
        // A caller may have stopped polling its acquisition, which then never ends.
        drop(timeout(CLOSE_TIMEOUT, self.context.tasks.wait()).await);
        self.context.backend.close().await
    }
}

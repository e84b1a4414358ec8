//! [`Request`]: what a backend is asked for.

use std::{fmt, num::NonZeroU32, sync::Arc};

use tokio::sync::Notify;

use crate::{
    acquisition_id::AcquisitionId,
    clock::{Clock, ClockDrift, Deadline, SystemClock, Timestamp},
    key::LockKey,
    label,
    mode::Mode,
    signal::{LossReason, Signal},
    ttl::Ttl,
};

/// One acquisition, as a backend sees it. Cloning is cheap and stays the same acquisition.
#[derive(Clone)]
pub struct Request {
    key: LockKey,
    mode: Mode,
    ttl: Ttl,
    owner: AcquisitionId,
    /// As whom it waits: the owner of its first attempt.
    waiter: AcquisitionId,
    yielding: bool,
    waiting: bool,
    in_order: bool,
    context: Arc<RequestContext>,
    signal: Arc<Signal>,
}

/// What all requests of one client share.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    pub(crate) label: Arc<str>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) drift: ClockDrift,
    /// Told when a backend reports a loss; the client's renewer listens.
    pub(crate) losses: Arc<Notify>,
    /// Cancelled when the client closes, and all its requests with it.
    pub(crate) closing: Arc<Signal>,
    /// Cancelled when the client drains, and the requests that are not granted yet with it.
    pub(crate) draining: Arc<Signal>,
}

impl RequestContext {
    pub(crate) fn with_label(&self, label: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            label,
            ..self.clone()
        })
    }
}

impl Request {
    /// An exclusive request with a fresh owner, the default TTL, the system's clock and no label.
    /// The client builds requests by itself; this is for tests and for those who drive a backend
    /// directly.
    #[must_use]
    pub fn new(key: LockKey) -> Self {
        let context = RequestContext {
            label: Arc::from(""),
            clock: Arc::new(SystemClock),
            drift: ClockDrift::DEFAULT,
            losses: Arc::default(),
            closing: Arc::default(),
            draining: Arc::default(),
        };
        Self::in_context(key, Mode::Exclusive, Ttl::DEFAULT, Arc::new(context))
    }

    pub(crate) fn in_context(
        key: LockKey,
        mode: Mode,
        ttl: Ttl,
        context: Arc<RequestContext>,
    ) -> Self {
        let owner = AcquisitionId::random();
        Self {
            key,
            mode,
            ttl,
            owner,
            waiter: owner,
            yielding: false,
            waiting: false,
            in_order: false,
            context,
            signal: Arc::default(),
        }
    }

    /// Asks for this mode.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Asks for one of this many permits.
    #[must_use]
    pub fn with_permit_of(self, of: NonZeroU32) -> Self {
        self.with_mode(Mode::Permit { of })
    }

    /// Asks for this TTL.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Ttl) -> Self {
        self.ttl = ttl;
        self
    }

    /// Asks as this owner.
    #[must_use]
    pub fn with_owner(mut self, owner: AcquisitionId) -> Self {
        (self.owner, self.waiter) = (owner, owner);
        self
    }

    /// Asks to be refused if another process is waiting; see
    /// [`yields_to_waiters`](Self::yields_to_waiters).
    #[must_use]
    pub fn with_yield_to_waiters(mut self, yielding: bool) -> Self {
        self.yielding = yielding;
        self
    }

    /// Says that who asks goes on waiting if refused; see [`is_waiting`](Self::is_waiting).
    #[must_use]
    pub fn with_waiting(mut self, waiting: bool) -> Self {
        self.waiting = waiting;
        self
    }

    /// Asks to be refused while somebody waits who came earlier; see
    /// [`is_in_order`](Self::is_in_order).
    #[must_use]
    pub fn with_order(mut self, in_order: bool) -> Self {
        self.in_order = in_order;
        self
    }

    /// Replaces the human label.
    #[must_use]
    pub fn with_label(self, label: impl Into<Arc<str>>) -> Self {
        let label = label.into();
        self.map_context(|context| context.label = label)
    }

    /// Replaces the clock and the drift that [`deadline_from`](Self::deadline_from) computes with.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>, drift: ClockDrift) -> Self {
        self.map_context(|context| {
            context.clock = clock;
            context.drift = drift;
        })
    }

    /// The same request with a new owner, for an attempt after one whose outcome is unknown.
    #[must_use]
    pub fn as_new_owner(&self) -> Self {
        Self {
            owner: AcquisitionId::random(),
            ..self.clone()
        }
    }

    /// Returns the same acquisition as one node of a quorum sees it: a loss or a cancellation there
    /// does not end this one. Its label is cut to the length that every kind of backend stores, so
    /// that all nodes give a holder the same name.
    pub(crate) fn for_node(&self) -> Self {
        let context = match label::truncate_label(self.label()) {
            Some(label) => self.context.with_label(label),
            None => Arc::clone(&self.context),
        };
        Self {
            signal: Arc::default(),
            context,
            ..self.clone()
        }
    }

    fn map_context(mut self, change: impl FnOnce(&mut RequestContext)) -> Self {
        let mut context = RequestContext::clone(&self.context);
        change(&mut context);
        self.context = Arc::new(context);
        self
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &LockKey {
        &self.key
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// The owner of this acquisition: the backend releases and renews only what this owner holds.
    #[must_use]
    pub fn owner(&self) -> AcquisitionId {
        self.owner
    }

    /// As whom it waits: the owner of its first attempt, also after
    /// [`as_new_owner`](Self::as_new_owner).
    #[must_use]
    pub fn waiter(&self) -> AcquisitionId {
        self.waiter
    }

    /// Who this is, for people: shown by `inspect`.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.context.label
    }

    /// Returns whether this attempt should be refused if a waiter of *another process* is known,
    /// because this process has used up its fairness quota for the key. A backend that serves
    /// waiters in order, or that does not know its waiters, ignores it. The other waiter may be
    /// dead, so such a refusal must come with a short
    /// [`retry_after`](crate::Contention::retry_after).
    #[must_use]
    pub fn yields_to_waiters(&self) -> bool {
        self.yielding
    }

    /// To be called by [`LockBackend::acquire`](crate::LockBackend::acquire) each time that the
    /// backend has answered that another holds the lock. A wait that ends without it ends as
    /// [`Unavailable`](crate::ErrorKind::Unavailable), otherwise as refused.
    /// [`acquire_with_retry`](crate::acquire_with_retry) calls it for each refused attempt.
    pub fn set_contended(&self) {
        self.signal.set_contended();
    }

    /// Whether who asks goes on waiting if this attempt is refused. A backend may then register the
    /// waiter, for [`inspect`](crate::LockBackend::inspect), for yielding, and so that no reader
    /// overtakes a waiting writer.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether this attempt of a waiter should be refused while another waiter is known who came
    /// earlier. A backend that serves waiters in order anyway, or that does not know its waiters,
    /// ignores it. The other waiter may be dead: such a refusal, too, must come with a short
    /// [`retry_after`](crate::Contention::retry_after), and who is not woken within it asks without
    /// this.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// The present on the client's clock. Read it *before* the first byte of a request or renewal
    /// leaves.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.context.clock.now()
    }

    /// The client's clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.context.clock
    }

    /// When a grant or renewal that was sent at `sent` must be believed over.
    #[must_use]
    pub fn deadline_from(&self, sent: Timestamp) -> Deadline {
        self.context.drift.deadline(sent, self.ttl)
    }

    /// Cancels this request: [`LockBackend::acquire`](crate::LockBackend::acquire) stops waiting.
    pub fn cancel(&self) {
        self.signal.cancel();
    }

    /// Whether the caller has gone away, or its client closes or drains.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.signal.is_cancelled()
            || self.context.closing.is_cancelled()
            || self.context.draining.is_cancelled()
    }

    /// Completes when the caller has gone away, or its client closes or drains.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn cancelled(&self) {
        tokio::select! {
            biased;
            () = self.signal.cancelled() => {}
            () = self.context.closing.cancelled() => {}
            () = self.context.draining.cancelled() => {}
        }
    }

    /// Where a backend reports that a grant of this request was lost before its deadline.
    #[must_use]
    pub fn loss_notifier(&self) -> LossNotifier {
        LossNotifier {
            signal: Arc::clone(&self.signal),
            told: Arc::clone(&self.context.losses),
        }
    }

    pub(crate) fn context(&self) -> Arc<RequestContext> {
        Arc::clone(&self.context)
    }

    /// Whether the backend was known to hold the lock for another after this moment.
    pub(crate) fn is_contended_after(&self, since: Timestamp) -> bool {
        self.signal.excludes_others_after(since)
    }

    pub(crate) fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("key", &self.key)
            .field("mode", &self.mode)
            .field("ttl", &self.ttl)
            .field("owner", &self.owner)
            .field("label", &self.label())
            .finish_non_exhaustive()
    }
}

/// Where a backend reports the loss of one grant before its deadline.
#[derive(Clone, Debug)]
pub struct LossNotifier {
    signal: Arc<Signal>,
    told: Arc<Notify>,
}

impl LossNotifier {
    /// The grant is lost, final. The first report counts; after a release it is ignored.
    pub fn lost(&self, reason: LossReason) {
        if self.signal.lose(reason) {
            self.told.notify_one();
        }
    }
}

//! [`Request`]: one acquisition, as a backend sees it.

use std::{fmt, num::NonZeroU32, sync::Arc};

use tokio::sync::Notify;

use crate::{
    backend::acquisition_id::AcquisitionId,
    clock::{Clock, ClockDrift, Deadline, SystemClock, Timestamp},
    key::LockKey,
    label,
    mode::Mode,
    signal::{LossReason, Signal},
    ttl::Ttl,
};

/// One acquisition, as a backend sees it. Cloning is cheap, and a clone is the same acquisition.
///
/// ```
/// use leasehold_core::{LockKey, Mode, Ttl, backend::Request};
///
/// let request = Request::new(LockKey::new("item/42")?)
///     .with_mode(Mode::Shared)
///     .with_ttl(Ttl::from_secs(10)?);
/// let sent = request.now();
/// // The backend sends the request to its server here.
/// let deadline = request.deadline_from(sent);
/// assert!(deadline.remaining(sent) <= request.ttl().as_duration());
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Request {
    key: LockKey,
    mode: Mode,
    ttl: Ttl,
    owner: AcquisitionId,
    waiting: Waiting,
    proposal: Option<Arc<[u8]>>,
    context: Arc<RequestContext>,
    signal: Arc<Signal>,
}

/// The state that all requests of one client share.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    pub(crate) label: Arc<str>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) drift: ClockDrift,
    /// Notified when a backend reports a loss. The client's renewal task listens.
    pub(crate) losses: Arc<Notify>,
    /// Cancelled when the client closes, which cancels all its requests.
    pub(crate) closing: Arc<Signal>,
    /// Cancelled when the client drains, which cancels the requests that are not granted yet.
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
    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &LockKey {
        &self.key
    }

    /// Returns the mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// Returns the id of this acquisition. The backend releases and renews only grants with this
    /// id.
    #[must_use]
    pub fn owner(&self) -> AcquisitionId {
        self.owner
    }

    /// Returns the value that a candidate of an election publishes while it holds the lock. A
    /// backend whose [`Capabilities::proposals`](crate::Capabilities::proposals) is not set ignores
    /// it.
    #[must_use]
    pub fn proposal(&self) -> Option<&Arc<[u8]>> {
        self.proposal.as_ref()
    }

    /// Returns the human-readable label that `inspect` shows.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.context.label
    }

    /// Returns the current time on the client's clock. Read it *before* the first byte of a request
    /// or a renewal is sent.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.context.clock.now()
    }

    /// Returns the client's clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.context.clock
    }

    /// Returns the deadline of a grant or a renewal that was sent at `sent`.
    #[must_use]
    pub fn deadline_from(&self, sent: Timestamp) -> Deadline {
        self.context.drift.deadline(sent, self.ttl)
    }

    /// Returns whether the caller was dropped, or its client closes or drains.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.signal.is_cancelled()
            || self.context.closing.is_cancelled()
            || self.context.draining.is_cancelled()
    }

    /// Waits until the caller is dropped, or its client closes or drains.
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

    /// Records that another acquisition holds the lock. An override of
    /// [`LockBackend::acquire`](crate::backend::LockBackend::acquire) calls it after each such
    /// answer of its server; [`acquire_with_retry`](crate::backend::acquire_with_retry) calls it
    /// for each refused attempt. A wait with a timeout then ends as contended. Without this call it
    /// ends with [`Unavailable`](crate::ErrorKind::Unavailable).
    pub fn set_contended(&self) {
        self.signal.set_contended();
    }

    /// Returns how this request waits, for backends that know their waiters. Other backends ignore
    /// it.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Returns the handle by which a backend reports that a grant of this request was lost before
    /// its deadline.
    #[must_use]
    pub fn loss_notifier(&self) -> LossNotifier {
        LossNotifier {
            signal: Arc::clone(&self.signal),
            losses: Arc::clone(&self.context.losses),
        }
    }
}

/// # Building a request
/// The client builds its own requests. These methods are for tests, and for programs that drive a
/// backend directly.
impl Request {
    /// Creates an exclusive request with a new owner, the default TTL, the system clock and no
    /// label.
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

    /// Sets the mode.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the mode to a permit of a semaphore with this number of permits.
    #[must_use]
    pub fn with_permit_of(self, of: NonZeroU32) -> Self {
        self.with_mode(Mode::Permit { of })
    }

    /// Sets the TTL.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Ttl) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the owner, also as the id of the [waiter](Waiting::id).
    #[must_use]
    pub fn with_owner(mut self, owner: AcquisitionId) -> Self {
        (self.owner, self.waiting.id) = (owner, owner);
        self
    }

    /// Changes how this request waits; see [`waiting`](Self::waiting).
    #[must_use]
    pub fn with_waiting(mut self, change: impl FnOnce(&mut Waiting)) -> Self {
        change(&mut self.waiting);
        self
    }

    /// Makes this the request of a candidate of an election, which publishes `proposal` while it
    /// holds the lock.
    #[must_use]
    pub fn with_proposal(mut self, proposal: impl Into<Arc<[u8]>>) -> Self {
        self.proposal = Some(proposal.into());
        self
    }

    /// Replaces the human-readable label.
    #[must_use]
    pub fn with_label(self, label: impl Into<Arc<str>>) -> Self {
        let label = label.into();
        self.map_context(|context| context.label = label)
    }

    /// Replaces the clock and the drift that [`deadline_from`](Self::deadline_from) uses.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>, drift: ClockDrift) -> Self {
        self.map_context(|context| {
            context.clock = clock;
            context.drift = drift;
        })
    }

    /// Returns the same request with a new owner, for an attempt after one whose outcome is
    /// unknown.
    #[must_use]
    pub fn as_new_owner(&self) -> Self {
        Self {
            owner: AcquisitionId::random(),
            ..self.clone()
        }
    }

    /// Cancels this request: [`LockBackend::acquire`](crate::backend::LockBackend::acquire) stops
    /// waiting.
    pub fn cancel(&self) {
        self.signal.cancel();
    }

    fn map_context(mut self, change: impl FnOnce(&mut RequestContext)) -> Self {
        let mut context = RequestContext::clone(&self.context);
        change(&mut context);
        self.context = Arc::new(context);
        self
    }
}

impl Request {
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
            waiting: Waiting {
                id: owner,
                keeps_waiting: false,
                yields: false,
                in_order: false,
            },
            proposal: None,
            context,
            signal: Arc::default(),
        }
    }

    /// Returns the same acquisition as one node of a quorum sees it. A loss or a cancellation at
    /// the node does not end this acquisition. The label is truncated to the length that every kind
    /// of backend stores, so that all nodes show the same label. A node stores no proposal, because
    /// a quorum keeps none.
    pub(crate) fn for_node(&self) -> Self {
        let context = match label::truncate_label(self.label()) {
            Some(label) => self.context.with_label(label),
            None => Arc::clone(&self.context),
        };
        Self {
            signal: Arc::default(),
            proposal: None,
            context,
            ..self.clone()
        }
    }

    pub(crate) fn context(&self) -> Arc<RequestContext> {
        Arc::clone(&self.context)
    }

    /// Returns whether another acquisition was known to hold the lock after `since`.
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

/// The way in which a request waits among the other waiters for its key.
///
/// A backend may ignore it if its server keeps waiters in order, or if it does not register them.
///
/// ```
/// use leasehold_core::{LockKey, backend::Request};
///
/// let request = Request::new(LockKey::new("item/42")?)
///     .with_waiting(|waiting| waiting.keeps_waiting = true);
/// assert!(request.waiting().keeps_waiting && !request.waiting().yields);
/// // A later attempt is registered as the same waiter.
/// assert_eq!(request.as_new_owner().waiting().id, request.owner());
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The id by which the waiter is registered: the owner of the first attempt, also after
    /// [`Request::as_new_owner`].
    pub id: AcquisitionId,
    /// Whether the caller continues to wait if the attempt is refused. The backend may then
    /// register the waiter, so that [`inspect`](crate::backend::LockBackend::inspect) lists it and
    /// no reader overtakes a waiting writer.
    pub keeps_waiting: bool,
    /// Whether the attempt is refused if a waiter of *another process* is known, because this
    /// process has used up its fairness quota for the key. The other waiter may be dead, so the
    /// refusal must have a short [`retry_after`](crate::backend::Contention::retry_after).
    pub yields: bool,
    /// Whether the attempt is refused while an earlier waiter is known. The earlier waiter may be
    /// dead, so the refusal must have a short
    /// [`retry_after`](crate::backend::Contention::retry_after). A waiter that is not notified
    /// within this time makes its next attempt without this flag.
    pub in_order: bool,
}

/// A handle by which a backend reports the loss of one grant before its deadline.
///
/// ```
/// use leasehold_core::{LockKey, LossReason, backend::Request};
///
/// let request = Request::new(LockKey::new("item/42")?);
/// // Keep the notifier with the lease. When the server reports that the session has ended:
/// let notifier = request.loss_notifier();
/// notifier.lost(LossReason::SessionEnded);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LossNotifier {
    signal: Arc<Signal>,
    losses: Arc<Notify>,
}

impl LossNotifier {
    /// Reports that the grant is lost, which is final. Later reports, and reports after a release,
    /// have no effect.
    pub fn lost(&self, reason: LossReason) {
        if self.signal.lose(reason) {
            self.losses.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_of_a_quorum_gets_the_proposal() {
        let request = Request::new(LockKey::new("scheduler").unwrap());
        assert!(request.proposal().is_none());
        let candidate = request.with_proposal(b"10.0.0.7".as_slice());
        let again = candidate.as_new_owner();
        assert_eq!(
            again.proposal().map(|proposal| &proposal[..]),
            Some(&b"10.0.0.7"[..])
        );
        assert!(candidate.for_node().proposal().is_none());
    }
}

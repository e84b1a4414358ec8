//! [`OwnedLease`], one share of a lease, which a guard owns, and [`Release`], the release that the
//! last share starts.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    backend::lease::Released,
    error::Result,
    lease::{
        grant::{FIRST_PAUSE, retry_until_expired},
        held_lease::HeldLease,
    },
    local_queue::Place,
    panics::Call,
    telemetry::{self, Span},
};

/// One share of a lease. Dropping the last share releases the lease in the background.
pub(crate) struct OwnedLease {
    held: Arc<HeldLease>,
    /// Whether the share must still be given up.
    owned: bool,
}

impl OwnedLease {
    pub(crate) fn new(held: Arc<HeldLease>) -> Self {
        Self { held, owned: true }
    }

    pub(crate) fn held(&self) -> &Arc<HeldLease> {
        &self.held
    }

    pub(crate) async fn release(mut self) -> Result<Released> {
        self.owned = false;
        let held = &self.held;
        if !held.unshare() {
            return Ok(if held.loss().is_some() {
                Released::AlreadyLost
            } else {
                Released::StillHeld
            });
        }
        match Release::start(held) {
            Some(releasing) => releasing.await,
            None => Ok(Released::AlreadyLost),
        }
    }
}

impl Drop for OwnedLease {
    fn drop(&mut self) {
        if self.owned && self.held.unshare() {
            Release::in_background(&self.held);
        }
    }
}

/// A future that releases a held lease in the caller's task. If it is dropped before it completes,
/// the release continues in the background.
#[must_use]
pub(crate) struct Release {
    held: Arc<HeldLease>,
    operation: Option<Call<Released>>,
    place: Option<Place>,
    sent: bool,
    in_background: bool,
    span: Span,
    /// Closing or draining the client waits for this token.
    _under_way: TaskTrackerToken,
}

impl Release {
    /// Starts a release in the caller's task. Returns `None` if the lease was already lost or
    /// released.
    pub(crate) fn start(held: &Arc<HeldLease>) -> Option<Self> {
        if !held.signal().release() {
            held.after_loss();
            return None;
        }
        held.schedule.remove(held);
        held.end();
        let mut place = held.take_place();
        if let Some(place) = &mut place {
            place.released();
        }
        Some(Self {
            operation: Some(held.lease.release()),
            place,
            span: held.release_span(),
            held: Arc::clone(held),
            sent: false,
            in_background: false,
            _under_way: held.context.under_way(),
        })
    }

    /// Releases in the background. It never blocks and never panics.
    pub(crate) fn in_background(held: &Arc<HeldLease>) {
        held.begin_release();
        if let Some(mut releasing) = Self::start(held) {
            releasing.in_background = true;
            let context = Arc::clone(&held.context);
            context.in_background(releasing.finish());
        }
    }

    /// Retries until the release succeeds or the lease expires.
    async fn finish(mut self) {
        let held = Arc::clone(&self.held);
        let outcome = (&mut self).await;
        let span = std::mem::replace(&mut self.span, Span::none());
        drop(self);
        let outcome = retry_until_expired(&held.context, &held.lease, outcome).await;
        telemetry::released(&held.context, &outcome);
        telemetry::release_ended(&span, &outcome);
        if let Err(error) = outcome {
            span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not released; it expires"));
        }
    }
}

impl Future for Release {
    type Output = Result<Released>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(operation) = &mut this.operation else {
            return Poll::Pending;
        };
        let polled = this.span.in_scope(|| Pin::new(operation).poll(cx));
        if !this.sent {
            this.sent = true;
            if this.held.context.capabilities.pipelined_release
                && let Some(place) = &mut this.place
            {
                place.release_sent();
            }
        }
        let outcome = ready!(polled);
        this.operation = None;
        drop(this.place.take());
        // `finish` retries a release that runs in the background.
        if !this.in_background {
            telemetry::release_ended(&this.span, &outcome);
            if outcome.as_ref().is_err_and(crate::Error::is_retryable) {
                this.retry_in_background();
            } else {
                telemetry::released(&this.held.context, &outcome);
            }
        }
        Poll::Ready(outcome)
    }
}

impl Release {
    fn retry_in_background(&self) {
        let retry = Self {
            held: Arc::clone(&self.held),
            operation: Some(self.held.lease.release()),
            place: None,
            sent: true,
            in_background: true,
            span: self.held.release_span(),
            _under_way: self.held.context.under_way(),
        };
        self.held.context.in_background(async move {
            tokio::time::sleep(FIRST_PAUSE).await;
            retry.finish().await;
        });
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        // A release dropped in the background means that the runtime is shutting down. The lock
        // expires.
        let (Some(operation), false) = (self.operation.take(), self.in_background) else {
            return;
        };
        let rest = Self {
            held: Arc::clone(&self.held),
            operation: Some(operation),
            place: self.place.take(),
            sent: self.sent,
            in_background: true,
            span: std::mem::replace(&mut self.span, Span::none()),
            _under_way: self.held.context.under_way(),
        };
        self.held.context.in_background(rest.finish());
    }
}

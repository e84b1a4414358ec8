//! [`Releasing`]: a release, in the caller's task or in the background.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    backend::{contract::Released, request::Request},
    client::{handle::Client, local_queue::Place},
    error::Result,
    lease::held_lease::HeldLease,
    panics::{Call, ContainedLease},
    telemetry::{self, Span},
};

/// The delay before a failed release is retried. It doubles each time, until the lease expires.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The time for which releases are retried after the client starts to close.
const CLOSING: Duration = Duration::from_secs(2);

/// A future that releases a held lease in the caller's task. If it is dropped before it completes,
/// the release continues in the background.
#[must_use]
pub(crate) struct Releasing {
    hold: Arc<HeldLease>,
    operation: Option<Call<Released>>,
    place: Option<Place>,
    sent: bool,
    in_background: bool,
    span: Span,
    /// Closing or draining the client waits for this token.
    _under_way: TaskTrackerToken,
}

impl Releasing {
    /// Starts a release in the caller's task. Returns `None` if the lease was already lost or
    /// released.
    pub(crate) fn start(hold: &Arc<HeldLease>) -> Option<Self> {
        if !hold.signal().release() {
            hold.after_loss();
            return None;
        }
        hold.client.renewer.remove(hold);
        hold.end();
        let mut place = hold.take_place();
        if let Some(place) = &mut place {
            place.released();
        }
        Some(Self {
            operation: Some(hold.lease.release()),
            place,
            span: hold.release_span(),
            hold: Arc::clone(hold),
            sent: false,
            in_background: false,
            _under_way: hold.client.under_way(),
        })
    }

    /// Releases in the background. It never blocks and never panics.
    pub(crate) fn in_background(hold: &Arc<HeldLease>) {
        hold.begin_release();
        if let Some(mut releasing) = Self::start(hold) {
            releasing.in_background = true;
            let client = Arc::clone(&hold.client);
            client.in_background(releasing.finish());
        }
    }

    /// Retries until the release succeeds or the lease expires.
    async fn finish(mut self) {
        let hold = Arc::clone(&self.hold);
        let outcome = (&mut self).await;
        let span = std::mem::replace(&mut self.span, Span::none());
        drop(self);
        let outcome = until_over(&hold.client, &hold.lease, outcome).await;
        telemetry::released(&hold.client, &outcome);
        telemetry::release_ended(&span, &outcome);
        if let Err(error) = outcome {
            span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not released; it expires"));
        }
    }
}

/// Releases a lease that has no guard any more. Retries until the release succeeds or the lease
/// expires.
pub(crate) async fn give_back(client: &Client, lease: ContainedLease, span: Span) {
    let giving_back = async {
        let outcome = lease.release().await;
        until_over(client, &lease, outcome).await
    };
    let outcome = span.around(giving_back).await;
    telemetry::release_ended(&span, &outcome);
    if let Err(error) = outcome {
        span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not released; it expires"));
    }
}

/// Releases a grant that never had a guard; see [`give_back`].
pub(crate) async fn give_back_grant(client: &Client, lease: ContainedLease, request: &Request) {
    let token = lease.facts().ok().and_then(|(token, _)| token);
    let span = telemetry::release_span(&Span::none(), client, request, token);
    give_back(client, lease, span).await;
}

/// Retries a release with this outcome until it succeeds, cannot be retried, or the lease expires.
/// Once the client is closing, it stops after [`CLOSING`].
async fn until_over(
    client: &Client,
    lease: &ContainedLease,
    mut outcome: Result<Released>,
) -> Result<Released> {
    let mut pause = FIRST_PAUSE;
    let mut closed = pin!(async {
        client.context.closing.cancelled().await;
        tokio::time::sleep(CLOSING).await;
    });
    let is_over = || lease.valid_until().is_past(client.context.clock.now());
    while outcome.as_ref().is_err_and(crate::Error::is_retryable) && !is_over() {
        tokio::select! {
            () = &mut closed => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LONGEST_PAUSE.min(pause * 2);
        outcome = lease.release().await;
    }
    outcome
}

impl Future for Releasing {
    type Output = Result<Released>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(operation) = &mut this.operation else {
            return Poll::Pending;
        };
        let polled = this.span.in_scope(|| Pin::new(operation).poll(cx));
        if !this.sent {
            this.sent = true;
            if this.hold.client.capabilities.pipelined_release
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
                telemetry::released(&this.hold.client, &outcome);
            }
        }
        Poll::Ready(outcome)
    }
}

impl Releasing {
    fn retry_in_background(&self) {
        let retry = Self {
            hold: Arc::clone(&self.hold),
            operation: Some(self.hold.lease.release()),
            place: None,
            sent: true,
            in_background: true,
            span: self.hold.release_span(),
            _under_way: self.hold.client.under_way(),
        };
        self.hold.client.in_background(async move {
            tokio::time::sleep(FIRST_PAUSE).await;
            retry.finish().await;
        });
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        // A release dropped in the background means that the runtime is shutting down. The lock
        // expires.
        let (Some(operation), false) = (self.operation.take(), self.in_background) else {
            return;
        };
        let rest = Self {
            hold: Arc::clone(&self.hold),
            operation: Some(operation),
            place: self.place.take(),
            sent: self.sent,
            in_background: true,
            span: std::mem::replace(&mut self.span, Span::none()),
            _under_way: self.hold.client.under_way(),
        };
        self.hold.client.in_background(rest.finish());
    }
}

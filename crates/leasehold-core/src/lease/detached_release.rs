//! Releases of leases that have no guard, and the retries of releases in the background.

use std::{pin::pin, time::Duration};

use crate::{
    backend::{contained::ContainedLease, lease::Released, request::Request},
    context::ClientContext,
    error::Result,
    telemetry::{self, Span},
};

/// The delay before a failed release is retried. It doubles each time, until the lease expires.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The time for which releases are retried after the client starts to close.
const CLOSING: Duration = Duration::from_secs(2);

/// Releases a lease that has no guard. Retries until the release succeeds or the lease expires.
pub(crate) async fn release_detached(context: &ClientContext, lease: ContainedLease, span: Span) {
    let releasing = async {
        let outcome = lease.release().await;
        retry_until_expired(context, &lease, outcome).await
    };
    let outcome = span.around(releasing).await;
    telemetry::release_ended(&span, &outcome);
    if let Err(error) = outcome {
        span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not released; it expires"));
    }
}

/// Releases a grant that never had a guard; see [`release_detached`].
pub(crate) async fn release_grant(
    context: &ClientContext,
    lease: ContainedLease,
    request: &Request,
) {
    let token = lease.facts().ok().and_then(|(token, _)| token);
    let span = telemetry::release_span(&Span::none(), context, request, token);
    release_detached(context, lease, span).await;
}

/// Retries a release with this outcome until it succeeds, cannot be retried, or the lease expires.
/// Once the client is closing, it stops after [`CLOSING`].
pub(super) async fn retry_until_expired(
    context: &ClientContext,
    lease: &ContainedLease,
    mut outcome: Result<Released>,
) -> Result<Released> {
    let mut pause = FIRST_PAUSE;
    let mut closed = pin!(async {
        context.requests.closing.cancelled().await;
        tokio::time::sleep(CLOSING).await;
    });
    let is_over = || lease.valid_until().is_past(context.requests.clock.now());
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

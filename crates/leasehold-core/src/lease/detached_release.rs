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
pub(crate) async fn give_back(context: &ClientContext, lease: ContainedLease, span: Span) {
    let giving_back = async {
        let outcome = lease.release().await;
        until_over(context, &lease, outcome).await
    };
    let outcome = span.around(giving_back).await;
    telemetry::release_ended(&span, &outcome);
    if let Err(error) = outcome {
        span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not released; it expires"));
    }
}

/// Releases a grant that never had a guard; see [`give_back`].
pub(crate) async fn give_back_grant(
    context: &ClientContext,
    lease: ContainedLease,
    request: &Request,
) {
    let token = lease.facts().ok().and_then(|(token, _)| token);
    let span = telemetry::release_span(&Span::none(), context, request, token);
    give_back(context, lease, span).await;
}

/// Retries a release with this outcome until it succeeds, cannot be retried, or the lease expires.
/// Once the client is closing, it stops after [`CLOSING`].
pub(super) async fn until_over(
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

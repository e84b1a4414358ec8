//! The retries of a release at one node.

use std::{sync::Arc, time::Duration};

use crate::backend::{
    lease::{BoxFuture, ContainedLease, Lease},
    request::Request,
};

/// The shortest and the longest delay before a failed release is retried. The delay doubles.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Releases a lease until that succeeds or the lease expires.
pub(super) fn release_until_expired(
    lease: Arc<dyn Lease>,
    request: Request,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let (lease, mut pause) = (ContainedLease::new(lease), PAUSES.0);
        while let Err(error) = lease.release().await {
            if !error.is_retryable() || lease.valid_until().is_past(request.now()) {
                tracing::debug!(target: "leasehold", key = %request.key(), %error, "not released at a node; it expires");
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    })
}

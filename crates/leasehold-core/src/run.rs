//! Working under a lock: cancelled before the lock could be another's.

use std::{pin::Pin, sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind, Result},
    guard::OwnedLease,
    signal::LossReason,
};

/// How long before the deadline work is cancelled: a tenth of the TTL, at most this.
const LONGEST_MARGIN: Duration = Duration::from_secs(1);

/// Runs `work` under a lease, then releases. The work is boxed: a future that is moved into another
/// one takes its room twice, and each `run` within a `run` would double that.
pub(crate) async fn run<T>(
    lease: OwnedLease,
    work: Pin<Box<impl Future<Output = T>>>,
) -> Result<T> {
    let hold = Arc::clone(lease.hold());
    let (key, ttl) = (hold.request.key(), hold.request.ttl());
    let margin = (ttl.as_duration() / 10).min(LONGEST_MARGIN);
    let value = tokio::select! {
        biased;
        end = hold.ended_before(margin) => {
            let reason = end.unwrap_or(LossReason::Expired);
            return Err(Error::new(
                ErrorKind::Lost,
                format!("the lock `{key}` was lost and the work under it cancelled: {reason}"),
            ));
        }
        value = work => value,
    };
    if let Some(reason) = hold.loss() {
        return Err(Error::new(
            ErrorKind::Lost,
            format!("the work under `{key}` ended, but the lock was lost before: {reason}"),
        ));
    }
    // Done under the lease, whatever becomes of the release: it goes on in the background if it
    // fails.
    drop(lease.release().await);
    Ok(value)
}

/// The `run` methods that exclusive locks share.
macro_rules! run_methods {
    ($lock:ident) => {
        /// Locks, runs `work`, releases. `Ok` is work *completed under the lease*; the work is
        /// dropped (cancelled at its next `.await`) a tenth of the TTL, at most a second, before
        /// the lock could be granted to another.
        ///
        /// Code that blocks without an `.await` cannot be cancelled. Where a generic `work` must be
        /// spawned, use [`run_with`](Self::run_with).
        ///
        /// # Errors
        /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lock was lost before the work was
        /// complete; what it did until then is done. Otherwise as
        #[doc = concat!("[`", stringify!($lock), "`](Self::", stringify!($lock), ").")]
        ///
        /// # Cancel safety
        /// Safe for the lock: the work is dropped and the lock released in the background.
        pub async fn run<T>(
            &self,
            work: impl AsyncFnOnce(crate::LeaseInfo) -> T,
        ) -> crate::Result<T> {
            let guard = self.$lock().await?;
            let work = Box::pin(work(guard.info()));
            crate::run::run(guard.into_lease(), work).await
        }

        /// As [`run`](Self::run), for a `work` that is generic and `Send`: its future's type can be
        /// named.
        ///
        /// # Errors
        /// As [`run`](Self::run).
        ///
        /// # Cancel safety
        /// As [`run`](Self::run).
        pub async fn run_with<F, Fut, T>(&self, work: F) -> crate::Result<T>
        where
            F: FnOnce(crate::LeaseInfo) -> Fut,
            Fut: Future<Output = T>,
        {
            let guard = self.$lock().await?;
            let work = Box::pin(work(guard.info()));
            crate::run::run(guard.into_lease(), work).await
        }
    };
}
pub(crate) use run_methods;

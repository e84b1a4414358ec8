//! Working under a lock: cancelled before the lock could be another's.

use std::{pin::Pin, sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind, Result},
    lease::owned_lease::OwnedLease,
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

/// The `run` methods of a guard.
macro_rules! guard_run_methods {
    () => {
        /// Runs `work` under the lease, then releases it. `Ok` means that the work was *completed
        /// under the lease*.
        ///
        /// The work is dropped (cancelled at its next `.await`) a tenth of the TTL, at most a
        /// second, before the lock could be granted to another. Code that blocks without an
        /// `.await` cannot be cancelled. Where a generic `work` must be spawned, use
        /// [`run_with`](Self::run_with).
        ///
        /// # Errors
        /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lease was lost before the work was
        /// complete; what it did until then is done.
        ///
        /// # Cancel safety
        /// Safe for the lock: the work is dropped and the lock released in the background.
        pub async fn run<T>(
            self,
            work: impl AsyncFnOnce(crate::LeaseInfo) -> T,
        ) -> crate::Result<T> {
            let work = Box::pin(work(self.info()));
            crate::lock::run::run(self.into_lease(), work).await
        }

        /// Runs `work` as [`run`](Self::run) does. The type of its future can be named, so that a
        /// generic `work` may be `Send`.
        ///
        /// # Errors
        /// As [`run`](Self::run).
        ///
        /// # Cancel safety
        /// As [`run`](Self::run).
        pub async fn run_with<F, Fut, T>(self, work: F) -> crate::Result<T>
        where
            F: FnOnce(crate::LeaseInfo) -> Fut,
            Fut: Future<Output = T>,
        {
            let work = Box::pin(work(self.info()));
            crate::lock::run::run(self.into_lease(), work).await
        }

        /// Runs `work`, which may fail, as [`run`](Self::run) does.
        ///
        /// # Errors
        /// The error of the work, or that of [`run`](Self::run).
        ///
        /// # Cancel safety
        /// As [`run`](Self::run).
        pub async fn try_run<T, E>(
            self,
            work: impl AsyncFnOnce(crate::LeaseInfo) -> Result<T, E>,
        ) -> Result<T, E>
        where
            E: From<crate::Error>,
        {
            self.run(work).await?
        }
    };
}
pub(crate) use guard_run_methods;

/// The `run` methods of a lock: wait for it, then run under it.
macro_rules! run_methods {
    ($lock:ident, $run:ident, $run_with:ident, $try_run:ident) => {
        /// Waits for the lock, runs `work` under it, and releases it.
        #[doc = concat!("As [`", stringify!($lock), "`](Self::", stringify!($lock), "), then [`LockGuard::run`](crate::LockGuard::run).")]
        ///
        /// ```
        /// # use leasehold_local::MemoryBackend;
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
        /// # use leasehold_core::LockClient;
        /// # let client = LockClient::new(MemoryBackend::new());
        /// let sum = client.mutex("sum").run(async |lease| if lease.is_held() { 40 + 2 } else { 0 }).await?;
        /// assert_eq!(sum, 42);
        /// # Ok(()) }
        /// ```
        ///
        /// # Errors
        /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lock was lost before the work was
        /// complete; what it did until then is done. Otherwise as
        #[doc = concat!("[`", stringify!($lock), "`](Self::", stringify!($lock), ").")]
        ///
        /// # Cancel safety
        /// Safe for the lock: the work is dropped and the lock released in the background.
        pub async fn $run<T>(&self, work: impl AsyncFnOnce(crate::LeaseInfo) -> T) -> crate::Result<T> {
            self.$lock().await?.run(work).await
        }

        #[doc = concat!("Runs `work` as [`", stringify!($run), "`](Self::", stringify!($run), ") does.")]
        /// The type of its future can be named, so that a generic `work` may be `Send`.
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($run), "`](Self::", stringify!($run), ").")]
        ///
        /// # Cancel safety
        #[doc = concat!("As [`", stringify!($run), "`](Self::", stringify!($run), ").")]
        pub async fn $run_with<F, Fut, T>(&self, work: F) -> crate::Result<T>
        where
            F: FnOnce(crate::LeaseInfo) -> Fut,
            Fut: Future<Output = T>,
        {
            self.$lock().await?.run_with(work).await
        }

        #[doc = concat!("Runs `work`, which may fail, as [`", stringify!($run), "`](Self::", stringify!($run), ") does.")]
        ///
        /// # Errors
        #[doc = concat!("The error of the work, or that of [`", stringify!($run), "`](Self::", stringify!($run), ").")]
        ///
        /// # Cancel safety
        #[doc = concat!("As [`", stringify!($run), "`](Self::", stringify!($run), ").")]
        pub async fn $try_run<T, E>(
            &self,
            work: impl AsyncFnOnce(crate::LeaseInfo) -> Result<T, E>,
        ) -> Result<T, E>
        where
            E: From<crate::Error>,
        {
            self.$lock().await?.try_run(work).await
        }
    };
}
pub(crate) use run_methods;

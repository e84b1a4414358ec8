//! Running work under a lock, which is cancelled before the lock can be granted to another holder.

use std::{pin::Pin, sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind, Result},
    lease::release::OwnedLease,
    signal::LossReason,
};

/// Work is cancelled a tenth of the TTL before the deadline, but at most this long before.
const LONGEST_MARGIN: Duration = Duration::from_secs(1);

/// Runs `work` under a lease, then releases it. The work is boxed, because a future that is moved
/// into another future takes its size twice, which nested calls would double each time.
pub(crate) async fn run<T>(
    lease: OwnedLease,
    work: Pin<Box<impl Future<Output = T>>>,
) -> Result<T> {
    let held = Arc::clone(lease.held());
    let (key, ttl) = (held.request.key(), held.request.ttl());
    let margin = (ttl.as_duration() / 10).min(LONGEST_MARGIN);
    let value = tokio::select! {
        biased;
        end = held.ended_before(margin) => {
            let reason = end.unwrap_or(LossReason::Expired);
            return Err(Error::new(
                ErrorKind::Lost,
                format!("the lock `{key}` was lost, and the work under it was cancelled: {reason}"),
            ));
        }
        value = work => value,
    };
    if let Some(reason) = held.loss() {
        return Err(Error::new(
            ErrorKind::Lost,
            format!("the lock `{key}` was lost before the work under it ended: {reason}"),
        ));
    }
    // The work was completed under the lease, whatever the outcome of the release. A failed release
    // is retried in the background.
    drop(lease.release().await);
    Ok(value)
}

/// Defines the `run` methods of a guard.
macro_rules! guard_run_methods {
    () => {
        /// Runs `work` under the lease, then releases it. `Ok` means that the work was *completed
        /// under the lease*.
        ///
        /// The work is cancelled before the lock can be granted to another holder: it is dropped at
        /// its next `.await`, a tenth of the TTL but at most a second before the deadline. Code
        /// that blocks without an `.await` cannot be cancelled. If a generic `work` must be
        /// spawned, use [`run_with`](Self::run_with).
        ///
        /// # Errors
        /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lease was lost before the work was
        /// complete. Effects that the work had until then are not undone.
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

/// Defines the `run` methods of a lock, which wait for it and then run work under it.
macro_rules! run_methods {
    ($lock:ident, $run:ident, $run_with:ident, $try_run:ident) => {
        /// Waits for the lock, runs `work` under it, and releases it.
        #[doc = concat!("As [`", stringify!($lock), "`](Self::", stringify!($lock), "), then [`LockGuard::run`](crate::LockGuard::run).")]
        ///
        /// ```
        /// # use leasehold_local::MemoryBackend;
        /// # #[tokio::main(flavor = "current_thread")]
        /// # async fn main() -> leasehold_core::Result<()> {
        /// # use leasehold_core::LockClient;
        /// # let client = LockClient::new(MemoryBackend::new());
        /// let sum = client.mutex("sum").run(async |lease| if lease.is_held() { 40 + 2 } else { 0 }).await?;
        /// assert_eq!(sum, 42);
        /// # Ok(()) }
        /// ```
        ///
        /// # Errors
        /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lock was lost before the work was
        /// complete. Effects that the work had until then are not undone. Otherwise as
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

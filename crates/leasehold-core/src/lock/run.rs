//! Running work under a lock, which is cancelled before the lock can be granted to another holder.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::future::{join_all, select_all};

use crate::{
    error::{Error, ErrorKind, Result},
    lease::release::OwnedLease,
    signal::LossReason,
};

/// Work is cancelled a tenth of the TTL before the deadline, but at most this long before.
const LONGEST_MARGIN: Duration = Duration::from_secs(1);

/// Runs `work` under one or more leases, then releases them. The work is boxed, because a future
/// that is moved into another future takes its size twice, which nested calls would double each
/// time.
pub(crate) async fn run<T>(
    leases: impl AsRef<[OwnedLease]> + IntoIterator<Item = OwnedLease>,
    work: Pin<Box<impl Future<Output = T>>>,
) -> Result<T> {
    let ends = leases.as_ref().iter().map(|lease| {
        let held = Arc::clone(lease.held());
        let margin = (held.request.ttl().as_duration() / 10).min(LONGEST_MARGIN);
        Box::pin(async move {
            let reason = held.ended_before(margin).await;
            (held, reason.unwrap_or(LossReason::Expired))
        })
    });
    let value = tokio::select! {
        biased;
        ((held, reason), ..) = select_all(ends) => {
            return Err(Error::new(
                ErrorKind::Lost,
                format!(
                    "the lock `{}` was lost, and the work under it was cancelled: {reason}",
                    held.request.key()
                ),
            ));
        }
        value = work => value,
    };
    for held in leases.as_ref().iter().map(OwnedLease::held) {
        if let Some(reason) = held.loss() {
            return Err(Error::new(
                ErrorKind::Lost,
                format!(
                    "the lock `{}` was lost before the work under it ended: {reason}",
                    held.request.key()
                ),
            ));
        }
    }
    // The work was completed under the leases, whatever the outcome of their release. A failed
    // release is retried in the background.
    drop(join_all(leases.into_iter().map(OwnedLease::release)).await);
    Ok(value)
}

/// Defines the `run` methods of a guard.
macro_rules! guard_run_methods {
    ($info:ident) => {
        /// Runs `work` under the guard, then releases it. `Ok` means that the work was *completed
        /// under the guard*.
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
        pub async fn run<T>(self, work: impl AsyncFnOnce(crate::$info) -> T) -> crate::Result<T> {
            let work = Box::pin(work(self.info()));
            crate::lock::run::run(self.into_leases(), work).await
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
            F: FnOnce(crate::$info) -> Fut,
            Fut: Future<Output = T>,
        {
            let work = Box::pin(work(self.info()));
            crate::lock::run::run(self.into_leases(), work).await
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
            work: impl AsyncFnOnce(crate::$info) -> Result<T, E>,
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
    ($lock:ident, $run:ident, $run_with:ident, $try_run:ident; $guard:ident, $info:ident, $example:literal) => {
        /// Waits for the lock, runs `work` under it, and releases it.
        #[doc = concat!("As [`", stringify!($lock), "`](Self::", stringify!($lock), "), then [`", stringify!($guard), "::run`](crate::", stringify!($guard), "::run).")]
        ///
        /// ```
        /// # use leasehold_local::MemoryBackend;
        /// # #[tokio::main(flavor = "current_thread")]
        /// # async fn main() -> leasehold_core::Result<()> {
        /// # use leasehold_core::LockClient;
        /// # let client = LockClient::new(MemoryBackend::new());
        #[doc = concat!("let sum = client.", $example, ".run(async |lease| if lease.is_held() { 40 + 2 } else { 0 }).await?;")]
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
        pub async fn $run<T>(&self, work: impl AsyncFnOnce(crate::$info) -> T) -> crate::Result<T> {
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
            F: FnOnce(crate::$info) -> Fut,
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
            work: impl AsyncFnOnce(crate::$info) -> Result<T, E>,
        ) -> Result<T, E>
        where
            E: From<crate::Error>,
        {
            self.$lock().await?.try_run(work).await
        }
    };
}
pub(crate) use run_methods;

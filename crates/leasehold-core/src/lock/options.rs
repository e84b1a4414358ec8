//! The options of a lock, which its `with_*` methods set.

use std::sync::Arc;

use crate::{backend::request::RequestContext, error::Result, key::LockKey, mode::Mode, ttl::Ttl};

/// The way in which a lease is renewed.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Renewal;
///
/// let mutex = client.mutex("item/42").with_renewal(Renewal::Manual);
/// let guard = mutex.lock().await?;
/// guard.renew().await?; // or the lock is released at its deadline
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Renewal {
    /// The client renews the lease until its guard is dropped. If a guard is leaked
    /// (`mem::forget`), its lock is held until the process ends.
    #[default]
    Automatic,
    /// The owner of the guard calls [`LockGuard::renew`](crate::LockGuard::renew). A lease that is
    /// not renewed is released at its deadline.
    Manual,
}

/// The key, the mode and the options of a lock.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// An invalid key is reported by the first acquisition, so that `client.mutex(key)` returns a
    /// plain value.
    pub(crate) key: Result<LockKey>,
    pub(crate) mode: Mode,
    /// `None` for the default, which adapts to the backend. An invalid TTL is reported by the first
    /// acquisition.
    pub(crate) ttl: Option<Result<Ttl>>,
    pub(crate) renewal: Renewal,
    pub(crate) context: Arc<RequestContext>,
}

/// Defines the `with_*` methods that all locks share.
macro_rules! lock_options {
    () => {
        /// Sets the TTL, as a [`Duration`](std::time::Duration) or a [`Ttl`](crate::Ttl).
        ///
        /// Defaults to the client's TTL. If the TTL is invalid or outside the backend's range,
        /// acquisitions fail with [`InvalidInput`](crate::ErrorKind::InvalidInput).
        #[must_use]
        pub fn with_ttl<T>(mut self, ttl: T) -> Self
        where
            T: TryInto<crate::Ttl>,
            crate::Error: From<T::Error>,
        {
            self.spec.ttl = Some(ttl.try_into().map_err(crate::Error::from));
            self
        }

        /// Sets how the lease is renewed. Defaults to [`Renewal::Automatic`](crate::Renewal).
        #[must_use]
        pub fn with_renewal(mut self, renewal: crate::Renewal) -> Self {
            self.spec.renewal = renewal;
            self
        }

        /// Sets a human-readable label, shown by `inspect`. Defaults to `host/pid/program`.
        #[must_use]
        pub fn with_label(mut self, label: impl Into<std::sync::Arc<str>>) -> Self {
            self.spec.context = self.spec.context.with_label(label.into());
            self
        }
    };
}
pub(crate) use lock_options;

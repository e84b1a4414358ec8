//! How to lock: what the primitives' `with_*` methods set.

use std::sync::Arc;

use crate::{backend::request::RequestContext, error::Result, key::LockKey, mode::Mode, ttl::Ttl};

/// Who renews a lease.
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
    /// The client, for as long as the guard lives. A guard that is leaked (`mem::forget`) is held
    /// until the process ends.
    #[default]
    Automatic,
    /// Whoever has the guard, by [`LockGuard::renew`](crate::LockGuard::renew). What is not renewed
    /// is released at its deadline.
    Manual,
}

/// What one primitive asks for.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// An invalid name is told when it is used: `client.mutex(name)` stays a plain value.
    pub(crate) key: Result<LockKey>,
    pub(crate) mode: Mode,
    /// `None` is the default, which adapts to the backend. An invalid one is told when it is used,
    /// as an invalid name is.
    pub(crate) ttl: Option<Result<Ttl>>,
    pub(crate) renewal: Renewal,
    pub(crate) context: Arc<RequestContext>,
}

/// The `with_*` methods that all primitives share.
macro_rules! lock_options {
    () => {
        /// Sets how long a grant lasts unless it is renewed: a [`Duration`](std::time::Duration) or
        /// a [`Ttl`](crate::Ttl).
        ///
        /// Defaults to the client's TTL. A TTL that is not valid, or that the backend cannot do, is
        /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the lock is used.
        #[must_use]
        pub fn with_ttl<T>(mut self, ttl: T) -> Self
        where
            T: TryInto<crate::Ttl>,
            crate::Error: From<T::Error>,
        {
            self.spec.ttl = Some(ttl.try_into().map_err(crate::Error::from));
            self
        }

        /// Sets who renews the lease. Defaults to the client.
        #[must_use]
        pub fn with_renewal(mut self, renewal: crate::Renewal) -> Self {
            self.spec.renewal = renewal;
            self
        }

        /// Sets a label for people, which `inspect` shows. Defaults to `host/pid/program`.
        #[must_use]
        pub fn with_label(mut self, label: impl Into<std::sync::Arc<str>>) -> Self {
            self.spec.context = self.spec.context.with_label(label.into());
            self
        }
    };
}
pub(crate) use lock_options;

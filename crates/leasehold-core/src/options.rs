//! How to lock: what the primitives' `with_*` methods set.

use std::sync::Arc;

use crate::{error::Result, key::LockKey, mode::Mode, request::RequestContext, ttl::Ttl};

/// Who renews a lease.
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
    pub(crate) ttl: Ttl,
    pub(crate) renewal: Renewal,
    pub(crate) context: Arc<RequestContext>,
}

/// The `with_*` methods that all primitives share.
macro_rules! lock_options {
    () => {
        /// How long a grant lasts unless it is renewed. The client's default is
        /// [`Ttl::DEFAULT`](crate::Ttl::DEFAULT).
        #[must_use]
        pub fn with_ttl(mut self, ttl: crate::Ttl) -> Self {
            self.spec.ttl = ttl;
            self
        }

        /// Who renews; the client unless set.
        #[must_use]
        pub fn with_renewal(mut self, renewal: crate::Renewal) -> Self {
            self.spec.renewal = renewal;
            self
        }

        /// Who this is, for people who inspect the lock; host, process id and program unless set.
        #[must_use]
        pub fn with_label(mut self, label: impl Into<std::sync::Arc<str>>) -> Self {
            self.spec.context = self.spec.context.with_label(label.into());
            self
        }
    };
}
pub(crate) use lock_options;

//! The options that all primitives share.

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

//! The options that all locks share.

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

//! [`PostgresConfig`].

use std::{sync::Arc, time::Duration};

use leasehold_core::{CredentialsProvider, Error, ErrorKind, Result};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::{error, keys::KeyScheme};

/// Options of the backend.
///
/// ```
/// use std::time::Duration;
/// use leasehold_postgres::PostgresConfig;
///
/// let config = PostgresConfig::default()
///     .with_prefix("shop:")
///     .with_timeout(Duration::from_secs(1));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// Put before every name. Empty by default.
    pub prefix: Arc<[u8]>,
    /// How names become advisory keys. [`KeyScheme::Hash`] by default.
    pub keys: KeyScheme,
    /// Whether grants carry fencing tokens, which need a sequence. On by default.
    pub fencing: bool,
    /// The sequence that the tokens are drawn from, as `schema.name`; created if it is missing and
    /// the role may. All who share locks must name the same. `public.leasehold_tokens` by default.
    pub sequence: Arc<str>,
    /// How long the server may take to answer; at most a quarter of the TTL where one is known. 2 s
    /// by default.
    pub timeout: Duration,
    /// How long a connection may take to come about. 2 s by default.
    pub connect_timeout: Duration,
    /// How often a waiter looks by itself, at most an eighth of the TTL: nobody tells it when a
    /// holder dies, or when a holder that is another program releases. 1 s by default.
    pub fallback_poll_interval: Duration,
    /// The most connections that hold locks; each carries up to about 1 000 claims. 16 by default.
    pub max_sessions: usize,
    /// Supplies the user and the password of each new connection. `None` by default, which uses
    /// those of the URL or of the options.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            prefix: Arc::from(b"".as_slice()),
            keys: KeyScheme::default(),
            fencing: true,
            sequence: Arc::from("public.leasehold_tokens"),
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            fallback_poll_interval: Duration::from_secs(1),
            max_sessions: 16,
            credentials: None,
        }
    }
}

impl PostgresConfig {
    /// Puts this before every name.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// Makes keys of names in this way.
    #[must_use]
    pub fn with_keys(mut self, keys: KeyScheme) -> Self {
        self.keys = keys;
        self
    }

    /// Draws fencing tokens, or none.
    #[must_use]
    pub fn with_fencing(mut self, fencing: bool) -> Self {
        self.fencing = fencing;
        self
    }

    /// Draws the tokens from this sequence, `schema.name`.
    #[must_use]
    pub fn with_sequence(mut self, sequence: impl Into<Arc<str>>) -> Self {
        self.sequence = sequence.into();
        self
    }

    /// Waits this long for an answer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Waits this long for a connection.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Looks this often while waiting; see
    /// [`fallback_poll_interval`](Self::fallback_poll_interval).
    #[must_use]
    pub fn with_fallback_poll_interval(mut self, interval: Duration) -> Self {
        self.fallback_poll_interval = interval;
        self
    }

    /// Opens at most this many connections that hold locks.
    #[must_use]
    pub fn with_max_sessions(mut self, max: usize) -> Self {
        self.max_sessions = max;
        self
    }

    /// Sets the provider of the credentials of new connections.
    ///
    /// The backend asks `provider` before each new connection, and once more if the server refuses
    /// the credentials. Open connections survive a change of the password. While the server refuses
    /// what the provider supplies, an acquisition that needs a new connection fails with the
    /// retryable kind [`ErrorKind::Unavailable`], and a waiter retries for up to one TTL. The first
    /// connection fails with [`ErrorKind::Denied`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use leasehold_core::Credentials;
    /// use leasehold_postgres::PostgresConfig;
    ///
    /// // Fixed ones; implement `CredentialsProvider` for those that change.
    /// let credentials = Credentials::new("secret").with_username("shop");
    /// let config = PostgresConfig::default().with_credentials(Arc::new(credentials));
    /// # drop(config);
    /// ```
    #[must_use]
    pub fn with_credentials(mut self, provider: Arc<dyn CredentialsProvider>) -> Self {
        self.credentials = Some(provider);
        self
    }

    /// The sequence's schema and name.
    pub(crate) fn sequence_parts(&self) -> Result<(&str, &str)> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() < 64
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        self.sequence
            .split_once('.')
            .filter(|(schema, name)| plain(schema) && plain(name))
            .ok_or_else(|| invalid("the option `sequence` is not schema.name, each of letters, digits and underscores"))
    }
}

/// Refuses TLS that was asked for and cannot be had.
pub(crate) fn check_tls(options: &PgConnectOptions) -> Result<()> {
    #[cfg(feature = "tls")]
    choose_crypto_provider();
    let wanted = !matches!(
        options.get_ssl_mode(),
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer
    );
    if wanted && !cfg!(feature = "tls") {
        let message =
            "`sslmode` needs the feature `tls` of leasehold-postgres; enable it in Cargo.toml";
        return Err(error::plain(ErrorKind::Unsupported, "connect", message));
    }
    Ok(())
}

/// The driver takes the process's crypto provider for `verify-ca`, and panics if there is none and
/// several to choose from.
#[cfg(feature = "tls")]
fn choose_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread has just chosen one, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

fn invalid(message: impl Into<String>) -> Error {
    error::plain(ErrorKind::InvalidInput, "connect", message)
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::*;
    use crate::url::ParsedUrl;

    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let location = ParsedUrl::parse("postgres://h/?sslmode=require").unwrap();
        let error = check_tls(&location.options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}

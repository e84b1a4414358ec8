//! [`PostgresConfig`]: the options of the backend. [`ParsedUrl`]: a URL with options.

mod libpq;
mod tls;
mod url;

use std::{borrow::Cow, sync::Arc, time::Duration};

use leasehold_core::{CredentialsProvider, Error, ErrorKind, Result};

use crate::{error::ERRORS, keys::KeyScheme};

pub(crate) use self::{
    tls::{check_tls, is_local},
    url::ParsedUrl,
};

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
    /// The prefix of every lock name. Empty by default.
    pub prefix: Arc<[u8]>,
    /// The mapping from names to advisory keys. [`KeyScheme::Hash`] by default.
    pub keys: KeyScheme,
    /// Whether grants carry fencing tokens, which need a sequence. On by default.
    pub fencing: bool,
    /// The sequence of the fencing tokens, as `schema.name`. The first acquisition creates it if it
    /// is missing and the role has the right. All programs that share locks must use the same
    /// sequence. `public.leasehold_tokens` by default.
    pub sequence: Arc<str>,
    /// The table of the records, as `schema.name`. The first write of a record creates it if it is
    /// missing and the role has the right. All programs that share records must use the same table.
    /// `public.leasehold_records` by default.
    pub records: Arc<str>,
    /// The maximum time for an answer of the server; at most a quarter of the TTL if locks depend
    /// on the answer. 2 s by default.
    pub timeout: Duration,
    /// The maximum time for opening a connection. 2 s by default.
    pub connect_timeout: Duration,
    /// How often a waiter retries without a notification; at most an eighth of the TTL. There is no
    /// notification when a holder dies, or when another program releases. 1 s by default.
    pub fallback_poll_interval: Duration,
    /// The maximum number of connections that hold locks. Each holds up to about 1 000 locks. 16 by
    /// default.
    pub max_sessions: usize,
    /// The source of the user and the password of each new connection. `None` by default, which
    /// uses those of the URL or of the driver's options.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            prefix: Arc::from(b"".as_slice()),
            keys: KeyScheme::default(),
            fencing: true,
            sequence: Arc::from("public.leasehold_tokens"),
            records: Arc::from("public.leasehold_records"),
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            fallback_poll_interval: Duration::from_secs(1),
            max_sessions: 16,
            credentials: None,
        }
    }
}

impl PostgresConfig {
    /// Creates the default configuration.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the prefix of every lock name.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// Sets the mapping from names to advisory keys.
    #[must_use]
    pub fn with_keys(mut self, keys: KeyScheme) -> Self {
        self.keys = keys;
        self
    }

    /// Enables or disables fencing tokens.
    #[must_use]
    pub fn with_fencing(mut self, fencing: bool) -> Self {
        self.fencing = fencing;
        self
    }

    /// Sets the sequence of the fencing tokens, as `schema.name`.
    #[must_use]
    pub fn with_sequence(mut self, sequence: impl Into<Arc<str>>) -> Self {
        self.sequence = sequence.into();
        self
    }

    /// Sets the table of the records, as `schema.name`.
    #[must_use]
    pub fn with_records(mut self, records: impl Into<Arc<str>>) -> Self {
        self.records = records.into();
        self
    }

    /// Sets the maximum time for an answer of the server.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the maximum time for opening a connection.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how often a waiter retries without a notification; see
    /// [`fallback_poll_interval`](Self::fallback_poll_interval).
    #[must_use]
    pub fn with_fallback_poll_interval(mut self, interval: Duration) -> Self {
        self.fallback_poll_interval = interval;
        self
    }

    /// Sets the maximum number of connections that hold locks.
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
    /// // Fixed credentials. Implement `CredentialsProvider` for credentials that change.
    /// let credentials = Credentials::new("secret").with_username("shop");
    /// let config = PostgresConfig::new().with_credentials(Arc::new(credentials));
    /// # drop(config);
    /// ```
    #[must_use]
    pub fn with_credentials(mut self, provider: Arc<dyn CredentialsProvider>) -> Self {
        self.credentials = Some(provider);
        self
    }

    /// Returns the quoted name of the sequence, or `None` if tokens are off.
    pub(crate) fn quoted_sequence(&self) -> Result<Option<String>> {
        if !self.fencing {
            return Ok(None);
        }
        self.sequence_parts().map(quoted).map(Some)
    }

    /// Returns the schema and the name of the sequence.
    pub(crate) fn sequence_parts(&self) -> Result<(&str, &str)> {
        parts("sequence", &self.sequence)
    }

    /// Returns the quoted name of the table of the records.
    pub(crate) fn quoted_records(&self) -> Result<String> {
        self.records_parts().map(quoted)
    }

    /// Returns the schema and the name of the table of the records.
    pub(crate) fn records_parts(&self) -> Result<(&str, &str)> {
        parts("records", &self.records)
    }
}

/// Returns the schema and the name in the value of this option.
fn parts<'a>(option: &str, value: &'a str) -> Result<(&'a str, &'a str)> {
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() < 64
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    value
        .split_once('.')
        .filter(|(schema, name)| plain(schema) && plain(name))
        .ok_or_else(|| {
            invalid(format!(
                "the option `{option}` is not schema.name, each of letters, digits and underscores"
            ))
        })
}

/// Returns the quoted name of a relation.
fn quoted((schema, name): (&str, &str)) -> String {
    format!("\"{schema}\".\"{name}\"")
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    ERRORS.error(ErrorKind::InvalidInput, "connect", message)
}

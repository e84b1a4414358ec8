//! [`PostgresConfig`], and what a URL says.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use leasehold_core::{CredentialsProvider, Error, ErrorKind, Result, url::duration};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::{error, keys::KeyScheme};

/// Options of the backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// Put before every name. Empty by default.
    pub prefix: Arc<[u8]>,
    /// How names become advisory keys. [`KeyScheme::Hash`] by default.
    pub keys: KeyScheme,
    /// Whether grants carry fencing tokens, which need a sequence. On by default.
    pub fencing: bool,
    /// The sequence that the tokens are drawn from, as `schema.name`; created if it is missing and the role may. All who share
    /// locks must name the same. `public.leasehold_tokens` by default.
    pub sequence: Arc<str>,
    /// How long the server may take to answer; at most a quarter of the TTL where one is known. 2 s by default.
    pub timeout: Duration,
    /// How long a connection may take to come about. 2 s by default.
    pub connect_timeout: Duration,
    /// How often a waiter looks by itself, at most an eighth of the TTL: nobody tells it when a holder dies, or when a holder
    /// that is another program releases. 1 s by default.
    pub safety_net: Duration,
    /// The most connections that hold locks; each carries up to about 1 000 claims. 16 by default.
    pub max_sessions: usize,
    /// Supplies the user and the password of each new connection. `None` by default, which uses those
    /// of the URL or of the options.
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
            safety_net: Duration::from_secs(1),
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

    /// Looks this often while waiting; see [`safety_net`](Self::safety_net).
    #[must_use]
    pub fn with_safety_net(mut self, interval: Duration) -> Self {
        self.safety_net = interval;
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
    /// The backend asks `provider` before each new connection, and once more if the server refuses the
    /// credentials. Open connections survive a change of the password. While the server refuses what the
    /// provider supplies, an acquisition that needs a new connection fails with the retryable kind
    /// [`ErrorKind::Unavailable`], and a waiter retries for up to one TTL. The first connection fails
    /// with [`ErrorKind::Denied`].
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
            !part.is_empty() && part.len() < 64 && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        self.sequence
            .split_once('.')
            .filter(|(schema, name)| plain(schema) && plain(name))
            .ok_or_else(|| invalid("the option `sequence` is not schema.name, each of letters, digits and underscores"))
    }
}

/// What a URL says.
pub(crate) struct Location {
    pub(crate) options: PgConnectOptions,
    pub(crate) config: PostgresConfig,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options have a password.
        f.debug_struct("Location").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What the driver reads.
const DRIVERS: [&str; 11] = [
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

impl Location {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let unreadable = || invalid("the URL cannot be parsed; write postgres://user:password@host:5432/database");
        let mut url = Url::parse(url).map_err(|_| unreadable())?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid("the URL's scheme is neither `postgres` nor `postgresql`"));
        }
        if url.fragment().is_some() {
            return Err(invalid("the URL has a `#`; write %23 for one in a name or password"));
        }
        let mut config = PostgresConfig::default();
        let mut theirs = Vec::new();
        for (name, value) in url.query_pairs() {
            match &*name {
                "prefix" => config.prefix = value.as_bytes().into(),
                "keys" => config.keys = scheme(&value)?,
                "fencing" => {
                    config.fencing = match &*value {
                        "on" => true,
                        "off" => false,
                        _ => return Err(invalid("the option `fencing` is `on` or `off`")),
                    }
                }
                "sequence" => {
                    config.sequence = Arc::from(&*value);
                    config.sequence_parts()?;
                }
                "timeout" => config.timeout = duration("timeout", &value).map_err(ours)?,
                "connect-timeout" => config.connect_timeout = duration("connect-timeout", &value).map_err(ours)?,
                "safety-net" => config.safety_net = duration("safety-net", &value).map_err(ours)?,
                "max-sessions" => {
                    let max = value.parse().ok().filter(|max| *max > 0);
                    config.max_sessions =
                        max.ok_or_else(|| invalid("the option `max-sessions` is no number above 0"))?;
                }
                name if DRIVERS.contains(&name) => theirs.push((name.to_owned(), value.into_owned())),
                other => {
                    return Err(invalid(format!(
                        "the option `{}` is none of prefix, keys, fencing, sequence, timeout, connect-timeout, safety-net, \
                         max-sessions, {}",
                        other.escape_debug(),
                        DRIVERS.join(", ")
                    )));
                }
            }
        }
        url.set_query(None);
        if !theirs.is_empty() {
            url.query_pairs_mut().extend_pairs(theirs);
        }
        let options = PgConnectOptions::from_str(url.as_str())
            .map_err(|_| invalid("the driver cannot read the URL's host, port, options or sslmode"))?;
        Ok(Self { options, config })
    }
}

/// TLS that was asked for and cannot be had.
pub(crate) fn check_tls(options: &PgConnectOptions) -> Result<()> {
    let wanted = !matches!(options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer);
    if wanted && !cfg!(feature = "tls") {
        let message = "`sslmode` needs the feature `tls` of leasehold-postgres; enable it in Cargo.toml";
        return Err(error::plain(ErrorKind::Unsupported, "connect", message));
    }
    Ok(())
}

fn scheme(name: &str) -> Result<KeyScheme> {
    Ok(match name {
        "hash" => KeyScheme::Hash,
        "int64" => KeyScheme::Int64,
        "int32-pair" => KeyScheme::Int32Pair,
        "sqlx" => KeyScheme::Sqlx,
        "rails" => KeyScheme::Rails,
        "dotnet" => KeyScheme::DotNet,
        _ => return Err(invalid("the option `keys` is hash, int64, int32-pair, sqlx, rails or dotnet")),
    })
}

fn ours(error: Error) -> Error {
    error::named(error, "connect")
}

fn invalid(message: impl Into<String>) -> Error {
    error::plain(ErrorKind::InvalidInput, "connect", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_everything() {
        let url = "postgres://al%40ice:p%23ss@h:7000/shop?prefix=shop%3A&keys=rails&fencing=off&timeout=300ms&sslmode=disable\
                   &safety-net=3s&sequence=locks.tokens&max-sessions=3&connect-timeout=1s";
        let Location { options, config } = Location::parse(url).unwrap();
        assert_eq!((options.get_username(), options.get_host(), options.get_port()), ("al@ice", "h", 7000));
        assert_eq!(options.get_database(), Some("shop"));
        assert_eq!((&*config.prefix, config.keys, config.fencing), (b"shop:".as_slice(), KeyScheme::Rails, false));
        assert_eq!((config.timeout.as_millis(), config.safety_net.as_secs(), config.max_sessions), (300, 3, 3));
        assert_eq!(config.sequence_parts().unwrap(), ("locks", "tokens"));
        let socket = Location::parse("postgresql:///?host=/run/x&user=u&dbname=d").unwrap();
        assert_eq!(socket.options.get_socket(), Some(&"/run/x".into()));
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            ("postgres://u:secret@h/?prefx=a", "prefx"),
            ("postgres://u:secret@h:99999/", "parsed"),
            ("postgres://u:secret@h/?keys=odd", "keys"),
            ("postgres://u:secret@h/?fencing=maybe", "fencing"),
            ("postgres://u:secret@h/?sequence=tokens", "sequence"),
            ("postgres://u:secret@h/?sequence=a.b;drop", "sequence"),
            ("postgres://u:secret@h/?timeout=5", "timeout"),
            ("postgres://u:secret@h/?safety-net=0s", "safety-net"),
            ("postgres://u:secret@h/?max-sessions=0", "max-sessions"),
            ("postgres://u:secret@h/?sslmode=odd", "sslmode"),
            ("postgres://u:secret@h/#insecure", "#"),
            ("http://u:secret@h/", "scheme"),
            ("secret", "parsed"),
        ] {
            let error = Location::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{url}: {error:?}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let location = Location::parse("postgres://h/?sslmode=require").unwrap();
        let error = check_tls(&location.options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}

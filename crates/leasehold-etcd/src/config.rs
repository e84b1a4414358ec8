//! [`EtcdConfig`]: the options of the backend. [`ParsedUrl`]: a URL with options.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use leasehold_core::{Credentials, CredentialsProvider, Error, ErrorKind, Result, url::BackendUrl};
use tonic::transport::Endpoint;

use crate::{connector::Connector, error::ERRORS};

/// Options of [`EtcdBackend`](crate::EtcdBackend).
///
/// ```
/// use std::time::Duration;
///
/// use leasehold_etcd::EtcdConfig;
///
/// let config = EtcdConfig::new().with_prefix("shop/").with_timeout(Duration::from_secs(1));
/// assert_eq!(&*config.prefix, b"shop/");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// The prefix of every key. Empty by default.
    pub prefix: Arc<[u8]>,
    /// Writes names unchanged, to share locks with programs whose names contain `/` or `%`. A lock
    /// `a` is then not free while `a/b` has a holder or a waiter. Off by default.
    pub exact_names: bool,
    /// How long one member of the cluster may take to answer; at most a quarter of the TTL of the
    /// request. Defaults to 2 s, which is longer than an election.
    pub timeout: Duration,
    /// How long a connection attempt may take. Defaults to 1 s.
    pub connect_timeout: Duration,
    /// How often a waiter checks its position without a notification, because some servers lose
    /// events after a compaction. Defaults to 5 s.
    pub fallback_poll_interval: Duration,
    /// Supplies the user and the password. Without it, those of the URL or of the given client are
    /// used.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            prefix: Arc::from(b"".as_slice()),
            exact_names: false,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            fallback_poll_interval: Duration::from_secs(5),
            credentials: None,
        }
    }
}

impl EtcdConfig {
    /// Returns the default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the prefix of every key.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// Writes names unchanged; see [`exact_names`](Self::exact_names).
    #[must_use]
    pub fn with_exact_names(mut self, exact: bool) -> Self {
        self.exact_names = exact;
        self
    }

    /// Sets how long one member may take to answer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long a connection attempt may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how often a waiter checks without a notification; see
    /// [`fallback_poll_interval`](Self::fallback_poll_interval).
    #[must_use]
    pub fn with_fallback_poll_interval(mut self, interval: Duration) -> Self {
        self.fallback_poll_interval = interval;
        self
    }

    /// Sets the source of the user and the password. Passwords that rotate then require no restart.
    ///
    /// The provider is called for each connection, and again whenever the server rejects a token,
    /// because the token has expired or because users or roles were changed. A user name is
    /// required. If the server rejects credentials that it accepted before, the error is
    /// [`Unavailable`](leasehold_core::ErrorKind::Unavailable): the provider may have the next
    /// password a little later.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Arc<dyn CredentialsProvider>) -> Self {
        self.credentials = Some(credentials);
        self
    }
}

/// A URL, parsed into endpoints and options.
pub(crate) struct ParsedUrl {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) connector: Connector,
    pub(crate) config: EtcdConfig,
    pub(crate) credentials: Option<Credentials>,
}

impl fmt::Debug for ParsedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password must not be shown. The other fields are not needed.
        f.debug_struct("ParsedUrl")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl ParsedUrl {
    /// Parses `url`. Options that it does not set are those of `config`.
    pub(crate) fn parse(url: &str, mut config: EtcdConfig) -> Result<Self> {
        let mut url = BackendUrl::parse(url).map_err(with_context)?;
        let tls = match url.scheme() {
            "etcd" => false,
            "etcds" => true,
            _ => return Err(invalid("the URL's scheme is neither `etcd` nor `etcds`")),
        };
        if !matches!(url.path(), "" | "/") {
            return Err(invalid(
                "the URL has a path, which is not used; write it as `?prefix=`",
            ));
        }
        if url.hosts().is_empty() {
            return Err(invalid("the URL has no host; write etcd://127.0.0.1:2379/"));
        }
        let credentials = match (url.user(), url.password()) {
            (Some(user), Some(password)) => Some(Credentials::new(password).with_username(user)),
            (None, None) => None,
            _ => {
                return Err(invalid(
                    "a user needs a password; write etcd://user:password@host/",
                ));
            }
        };
        let mut take = |option| url.take(option).map_err(with_context);
        if let Some(prefix) = take("prefix")? {
            config.prefix = prefix.into_bytes().into();
        }
        if let Some(names) = take("names")? {
            config.exact_names = match names.as_str() {
                "exact" => true,
                "encoded" => false,
                _ => return Err(invalid("the option `names` is `encoded` or `exact`")),
            };
        }
        let files = url.take_tls_files(&["etcds"]).map_err(with_context)?;
        for (option, target) in [
            ("timeout", &mut config.timeout),
            ("connect-timeout", &mut config.connect_timeout),
            ("fallback-poll-interval", &mut config.fallback_poll_interval),
        ] {
            *target = url
                .take_duration(option)
                .map_err(with_context)?
                .unwrap_or(*target);
        }
        let connector = Connector {
            tls,
            files,
            connect_timeout: config.connect_timeout,
        };
        let hosts = url.hosts().iter().map(ToString::to_string);
        let endpoints = hosts
            .map(|host| connector.endpoint(&host))
            .collect::<Result<Vec<_>>>()?;
        url.finish().map_err(with_context)?;
        Ok(Self {
            endpoints,
            connector,
            config,
            credentials,
        })
    }
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    ERRORS.error(ErrorKind::InvalidInput, "connect", message)
}

fn with_context(error: Error) -> Error {
    ERRORS.named(error, "connect")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_sets_all_options() {
        let url = "etcd://al%40ice:p%23ss%2F@h1,h2:7000,[::1]:80/?prefix=shop%3A&timeout=300ms&names=exact&fallback-poll-interval=3s";
        let location = ParsedUrl::parse(url, EtcdConfig::default()).unwrap();
        let addresses = |url| {
            let endpoints = ParsedUrl::parse(url, EtcdConfig::default())
                .unwrap()
                .endpoints;
            endpoints
                .iter()
                .map(|endpoint| endpoint.uri().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            addresses(url),
            ["http://h1:2379/", "http://h2:7000/", "http://[::1]:80/"]
        );
        assert_eq!(&*location.config.prefix, b"shop:");
        assert!(location.config.exact_names);
        assert_eq!(
            (
                location.config.timeout.as_millis(),
                location.config.fallback_poll_interval.as_secs()
            ),
            (300, 3)
        );
        assert_eq!(addresses("etcd://[::1]"), ["http://[::1]:2379/"]);
        assert_eq!(addresses("etcd://h"), ["http://h:2379/"]);
    }

    #[test]
    fn errors_name_the_option_and_hide_the_password() {
        for (url, named) in [
            ("etcd://u:secret@h/?prefx=a", "prefx"),
            ("etcd://u:secret@h/x", "path"),
            ("etcd://u:secret@h:99999/", "port"),
            ("etcd://u:secret@/", "host"),
            ("etcd://u:secret@h1,,h2/", "host"),
            ("etcd://secret@h/", "password"),
            ("etcd://u:secret@h/?timeout=5", "timeout"),
            (
                "etcd://u:secret@h/?fallback-poll-interval=0s",
                "fallback-poll-interval",
            ),
            ("etcd://u:secret@h/?ca=/x", "etcds"),
            ("etcd://u:secret@h/?names=odd", "names"),
            ("etcd://u:secret@h/#insecure", "#"),
            ("etcd://u:top@secret127.0.0.1:1/", "host"),
            ("http://u:secret@h/", "scheme"),
            ("secret", "scheme"),
            ("etcd://u:Top?secret@h/", "%3F"),
            ("etcd://u:x@h/?prefix=%ff", "UTF-8"),
            ("etcd://u:x@h/?prefix=a&prefix=b", "more than once"),
        ] {
            let error = ParsedUrl::parse(url, EtcdConfig::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{url}: {error:?}"
            );
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let error = ParsedUrl::parse("etcds://h/", EtcdConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}

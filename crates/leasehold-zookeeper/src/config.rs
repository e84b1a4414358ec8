//! [`ZookeeperConfig`], and the parser of URLs.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use leasehold_core::{
    CredentialsProvider, Error, ErrorKind, Result,
    url::{BackendUrl, Host, TlsFiles},
};
use zookeeper_client::{Acl, Acls, Client, Connector};

use crate::{diagnosis::Speech, error::ERRORS};

const DEFAULT_PORT: u16 = 2181;
/// The longest root, in bytes. One request has up to 64 paths below it, with the longest names and
/// labels, and a server closes the connection on a request of more than 1 MiB (`jute.maxbuffer`).
pub(crate) const MAX_ROOT: usize = 2048;

/// Options of the backend.
///
/// ```
/// use std::time::Duration;
/// use leasehold_zookeeper::ZookeeperConfig;
///
/// let config = ZookeeperConfig::default()
///     .with_root("/shop/locks")
///     .with_tick(Duration::from_secs(2));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ZookeeperConfig {
    /// The prefix of every path, such as `/shop/locks`. It is created if it is missing. The
    /// server's root by default.
    pub root: Arc<str>,
    /// The names of the nodes of exclusive locks. [`ExclusiveNodes::Mutex`] by default.
    pub exclusive: ExclusiveNodes,
    /// The names of the nodes of candidates of an election. [`ElectionNodes::Latch`] by default.
    pub election: ElectionNodes,
    /// The access to the nodes of Leasehold. [`Access::Open`] by default, as in Curator.
    pub access: Access,
    /// The provider of the user and the password, for the scheme `digest`. None by default: the
    /// connector or the URL then authenticates once.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
    /// The servers' `tickTime`. By default half of the TTL, which is the most that it can be unless
    /// `minSessionTimeout` was lowered. Half of this value is subtracted from every deadline, so a
    /// known value makes locks last longer without a renewal.
    pub tick: Option<Duration>,
    /// The time-out of a request. It is shortened to a quarter of the TTL for requests of a
    /// session. 2 s by default, which is longer than an election.
    pub timeout: Duration,
    /// The time-out of a connection attempt. 2 s by default.
    pub connect_timeout: Duration,
    /// The interval at which a waiter polls, in addition to notifications. 5 s by default.
    pub fallback_poll_interval: Duration,
}

/// The names of the nodes of exclusive locks: those of one of two Curator classes, which do not see
/// each other.
///
/// Either way, Leasehold respects the nodes of both classes.
///
/// ```
/// use leasehold_zookeeper::{ExclusiveNodes, ZookeeperConfig};
///
/// // A write lock of Curator's `InterProcessReadWriteLock`:
/// let config = ZookeeperConfig::default().with_exclusive(ExclusiveNodes::ReadWrite);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExclusiveNodes {
    /// `lock-`, as `InterProcessMutex` and `LeaderSelector` write it. Readers of Curator's
    /// read-write lock do not see it.
    #[default]
    Mutex,
    /// `__WRIT__`, as the write lock of `InterProcessReadWriteLock` writes it. Curator's
    /// `InterProcessMutex` does not see it.
    ReadWrite,
}

/// The names of the nodes of candidates of an election: those of one of two Curator classes, which
/// do not see each other.
///
/// Either way, Leasehold respects the nodes of both classes.
///
/// ```
/// use leasehold_zookeeper::{ElectionNodes, ZookeeperConfig};
///
/// // A candidate beside those of Curator's `LeaderSelector`:
/// let config = ZookeeperConfig::default().with_election(ElectionNodes::Selector);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ElectionNodes {
    /// `latch-`, as `LeaderLatch` writes it. Curator's mutexes and `LeaderSelector` do not see it.
    #[default]
    Latch,
    /// `lock-`, as `LeaderSelector` and `InterProcessMutex` write it. `LeaderLatch` does not see
    /// it. Any holder of another program with such a node counts as a leader.
    Selector,
}

/// The access to the nodes of Leasehold.
///
/// ```
/// use leasehold_zookeeper::{Access, ZookeeperConfig};
///
/// let config = ZookeeperConfig::default().with_access(Access::Creator);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Everybody may do everything.
    #[default]
    Open,
    /// The user of this connection may do everything, and nobody else may do anything.
    Creator,
    /// An access list. Leasehold needs to read, create, write and delete.
    List(Arc<[Acl]>),
}

impl Access {
    pub(crate) fn acls(&self) -> Acls<'_> {
        match self {
            Self::Open => Acls::anyone_all(),
            Self::Creator => Acls::creator_all(),
            Self::List(acls) => Acls::new(acls),
        }
    }
}

impl Default for ZookeeperConfig {
    fn default() -> Self {
        Self {
            root: Arc::from(""),
            exclusive: ExclusiveNodes::default(),
            election: ElectionNodes::default(),
            access: Access::default(),
            credentials: None,
            tick: None,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            fallback_poll_interval: Duration::from_secs(5),
        }
    }
}

impl ZookeeperConfig {
    /// Sets the prefix of every path; see [`root`](Self::root).
    #[must_use]
    pub fn with_root(mut self, root: impl AsRef<str>) -> Self {
        self.root = root.as_ref().trim_end_matches('/').into();
        self
    }

    /// Sets the names of the nodes of exclusive locks; see [`ExclusiveNodes`].
    #[must_use]
    pub fn with_exclusive(mut self, exclusive: ExclusiveNodes) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Sets the names of the nodes of candidates of an election; see [`ElectionNodes`].
    #[must_use]
    pub fn with_election(mut self, election: ElectionNodes) -> Self {
        self.election = election;
        self
    }

    /// Sets the access to the nodes of Leasehold.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Authenticates with the user and the password that `provider` supplies.
    ///
    /// The provider is called for each new session, and again when a server denies an access. A
    /// session keeps the credentials that it has authenticated with before. Nodes that were created
    /// with [`Access::Creator`] keep the password that they were created with.
    #[must_use]
    pub fn with_credentials(mut self, provider: Arc<dyn CredentialsProvider>) -> Self {
        self.credentials = Some(provider);
        self
    }

    /// Sets the servers' `tickTime`; see [`tick`](Self::tick).
    #[must_use]
    pub fn with_tick(mut self, tick: Duration) -> Self {
        self.tick = Some(tick);
        self
    }

    /// Sets the time-out of a request.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the time-out of a connection attempt.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the interval at which a waiter polls; see
    /// [`fallback_poll_interval`](Self::fallback_poll_interval).
    #[must_use]
    pub fn with_fallback_poll_interval(mut self, interval: Duration) -> Self {
        self.fallback_poll_interval = interval;
        self
    }

    /// Checks that the servers can take these options.
    pub(crate) fn check(&self) -> Result<()> {
        let segments = self.root.strip_prefix('/').map(|rest| rest.split('/'));
        let sound = match segments {
            None => self.root.is_empty(),
            Some(mut segments) => {
                segments.all(|segment| !segment.is_empty() && segment != "." && segment != "..")
            }
        };
        if self.root.len() > MAX_ROOT {
            return Err(invalid(format!(
                "the root has {} bytes; {MAX_ROOT} are possible",
                self.root.len()
            )));
        }
        if sound {
            return Ok(());
        }
        Err(invalid(format!(
            "the root `{}` is no path such as /shop/locks",
            self.root.escape_debug()
        )))
    }
}

/// A parsed URL.
pub(crate) struct ParsedUrl {
    /// The hosts in the form that the driver parses: `h1:2181,h2:2181`.
    pub(crate) hosts: String,
    pub(crate) connector: Connector,
    pub(crate) tls: bool,
    pub(crate) speech: Speech,
    pub(crate) config: ZookeeperConfig,
}

impl fmt::Debug for ParsedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The connector has a password.
        f.debug_struct("ParsedUrl")
            .field("hosts", &self.hosts)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ParsedUrl {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let mut url = ours(BackendUrl::parse(url))?;
        let tls = match url.scheme() {
            "zookeeper" | "zk" => false,
            "zookeepers" | "zks" => true,
            _ => {
                return Err(invalid(
                    "the URL's scheme is none of `zookeeper`, `zk`, `zookeepers`, `zks`",
                ));
            }
        };
        if url.hosts().is_empty() {
            return Err(invalid(
                "the URL has no host; write zookeeper://127.0.0.1:2181/",
            ));
        }
        let identity = match (url.user(), url.password()) {
            (Some(user), Some(password)) => Some(format!("{user}:{password}")),
            (None, None) => None,
            _ => {
                return Err(invalid(
                    "a user needs a password; write zookeeper://user:password@host/",
                ));
            }
        };
        let mut config = ZookeeperConfig::default();
        if !matches!(url.path(), "" | "/") {
            config = config.with_root(url.path());
        }
        if let Some(text) = ours(url.take("exclusive"))? {
            config.exclusive = exclusive(&text)?;
        }
        if let Some(text) = ours(url.take("election"))? {
            config.election = election(&text)?;
        }
        if let Some(text) = ours(url.take("acl"))? {
            config.access = access(&text, identity.is_some())?;
        }
        config.tick = ours(url.take_duration("tick"))?;
        for (option, target) in [
            ("timeout", &mut config.timeout),
            ("connect-timeout", &mut config.connect_timeout),
            ("fallback-poll-interval", &mut config.fallback_poll_interval),
        ] {
            *target = ours(url.take_duration(option))?.unwrap_or(*target);
        }
        let files = ours(url.take_tls_files(&["zookeepers", "zks"]))?;
        config.check()?;
        let port = |host: &Host| {
            host.port()
                .map_or_else(|| format!("{host}:{DEFAULT_PORT}"), |_| host.to_string())
        };
        let hosts = url.hosts().iter().map(port).collect::<Vec<_>>().join(",");
        ours(url.finish())?;
        let (mut connector, speech) = if tls {
            with_tls(Client::connector(), &files)?
        } else {
            (Client::connector(), Speech::default())
        };
        if let Some(identity) = identity {
            connector = connector.with_auth("digest", identity.as_bytes());
        }
        Ok(Self {
            hosts,
            connector,
            tls,
            speech,
            config,
        })
    }
}

fn exclusive(text: &str) -> Result<ExclusiveNodes> {
    match text {
        "mutex" => Ok(ExclusiveNodes::Mutex),
        "readwrite" => Ok(ExclusiveNodes::ReadWrite),
        _ => Err(invalid("the option `exclusive` is `mutex` or `readwrite`")),
    }
}

fn election(text: &str) -> Result<ElectionNodes> {
    match text {
        "latch" => Ok(ElectionNodes::Latch),
        "selector" => Ok(ElectionNodes::Selector),
        _ => Err(invalid("the option `election` is `latch` or `selector`")),
    }
}

fn access(text: &str, has_user: bool) -> Result<Access> {
    match text {
        "open" => Ok(Access::Open),
        "creator" if has_user => Ok(Access::Creator),
        "creator" => Err(invalid(
            "`acl=creator` needs a user; write zookeeper://user:password@host/",
        )),
        _ => Err(invalid("the option `acl` is `open` or `creator`")),
    }
}

#[cfg(not(feature = "tls"))]
fn with_tls(_connector: Connector, _files: &TlsFiles) -> Result<(Connector, Speech)> {
    let message =
        "zookeepers: needs the feature `tls` of leasehold-zookeeper; enable it in Cargo.toml";
    Err(ERRORS.error(ErrorKind::Unsupported, "connect", message))
}

#[cfg(feature = "tls")]
fn with_tls(connector: Connector, files: &TlsFiles) -> Result<(Connector, Speech)> {
    use zookeeper_client::TlsOptions;
    choose_crypto_provider();
    let refuse = |what: &str, error: zookeeper_client::Error| {
        invalid(format!("the {what} cannot be used: {error}")).with_source(error)
    };
    let Some(ca) = ours(files.read_ca())? else {
        return Err(invalid(
            "zookeepers: needs the option `ca`, a file in PEM with the CA that signed the servers' \
             certificates",
        ));
    };
    // The driver takes PEM as text.
    let text = |pem: Vec<u8>| String::from_utf8_lossy(&pem).into_owned();
    let ca = text(ca);
    let mut options = TlsOptions::default()
        .with_pem_ca(&ca)
        .map_err(|error| refuse("option `ca`", error))?;
    let identity = ours(files.read_identity())?.map(|(cert, key)| (text(cert), text(key)));
    if let Some((cert, key)) = &identity {
        options = options
            .with_pem_identity(cert, key)
            .map_err(|error| refuse("pair of `cert` and `key`", error))?;
    }
    // The driver has accepted the files. If this parser does not, the diagnosis goes without them.
    let speech = Speech {
        tls: client_config(&ca, identity.as_ref()),
    };
    Ok((connector.with_tls(options), speech))
}

/// Returns the TLS settings that the driver uses.
#[cfg(feature = "tls")]
fn client_config(
    ca: &str,
    identity: Option<&(String, String)>,
) -> Option<Arc<rustls::ClientConfig>> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let certificates = |pem: &str| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .ok()
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates(ca)?);
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match identity {
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).ok()?;
            config
                .with_client_auth_cert(certificates(cert)?, key)
                .ok()?
        }
        None => config.with_no_client_auth(),
    };
    Some(Arc::new(config))
}

/// Installs a crypto provider for the process, unless there is one. Without one the driver panics
/// if several are compiled in.
#[cfg(feature = "tls")]
fn choose_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // This fails only if another thread has just installed one.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    }
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    ERRORS.error(ErrorKind::InvalidInput, "connect", message)
}

/// Adds the name of this backend to an error of core's.
fn ours<T>(read: Result<T>) -> Result<T> {
    read.map_err(|error| ERRORS.named(error, "connect"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_everything() {
        let url = "zookeeper://al%40ice:p%23ss%2F@h1,h2:7000,[::1]:80/shop/my%20locks/?timeout=300ms&tick=2s&exclusive=readwrite&election=selector&acl=creator";
        let location = ParsedUrl::parse(url).unwrap();
        assert_eq!(location.hosts, "h1:2181,h2:7000,[::1]:80");
        assert_eq!(&*location.config.root, "/shop/my locks");
        assert_eq!(location.config.exclusive, ExclusiveNodes::ReadWrite);
        assert_eq!(location.config.election, ElectionNodes::Selector);
        assert_eq!(location.config.access, Access::Creator);
        assert_eq!(
            (
                location.config.timeout.as_millis(),
                location.config.tick.unwrap().as_secs()
            ),
            (300, 2)
        );
        for url in ["zk://h", "zk://h/", "ZK://h"] {
            let location = ParsedUrl::parse(url).unwrap();
            assert_eq!((&*location.hosts, &*location.config.root), ("h:2181", ""));
        }
        assert!(!format!("{location:?}").contains("p#ss"));
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            (
                "zookeeper://u:secret@h/?timeot=1s",
                "did you mean `timeout`",
            ),
            ("zookeeper://u:secret@h/?odd=a", "exclusive, election, acl"),
            ("zookeeper://u:top?secret@h/", "%3F"),
            ("zookeeper://u:secret@h/a//b", "root"),
            ("zookeeper://u:secret@h/a/../b", "root"),
            ("zookeeper://u:secret@h:99999/", "port"),
            ("zookeeper://u:secret@/", "host"),
            ("zookeeper://u:secret@h1,,h2/", "host"),
            ("zookeeper://secret@h/", "password"),
            ("zookeeper://u:secret@h/?timeout=5", "timeout"),
            ("zookeeper://u:secret@h/?tick=0s", "tick"),
            ("zookeeper://u:secret@h/?ca=/x", "zookeepers"),
            ("zookeeper://u:secret@h/?exclusive=odd", "exclusive"),
            ("zookeeper://u:secret@h/?election=odd", "election"),
            ("zookeeper://h/?acl=creator", "user"),
            ("zookeeper://u:secret@h/?acl=odd", "acl"),
            ("zookeeper://u:secret@h/#insecure", "#"),
            ("http://u:secret@h/", "scheme"),
            ("secret", "scheme"),
        ] {
            let error = ParsedUrl::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{url}: {error:?}"
            );
        }
    }

    #[test]
    fn a_root_leaves_room_in_a_request() {
        let url = |length: usize| format!("zookeeper://h/{}", "r".repeat(length - 1));
        assert!(ParsedUrl::parse(&url(MAX_ROOT)).is_ok());
        let error = ParsedUrl::parse(&url(MAX_ROOT + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("2049 bytes"), "{error}");
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let error = ParsedUrl::parse("zookeepers://h/").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_needs_a_ca_and_says_what_it_cannot_read() {
        for (url, named) in [
            ("zookeepers://h/", "`ca`"),
            ("zookeepers://h/?ca=/nowhere.pem", "/nowhere.pem"),
        ] {
            let error = ParsedUrl::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}

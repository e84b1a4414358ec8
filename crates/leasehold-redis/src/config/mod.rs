//! [`RedisConfig`]: the options of the backend. [`ParsedUrl`]: a URL with options.

mod url;

use std::{fmt, sync::Arc, time::Duration};

use leasehold_core::{CredentialsProvider, ErrorKind, Result};
use redis::{Client, io::tcp::TcpSettings};

use crate::error::{self, ERRORS};

pub(crate) use self::url::{DEFAULT_PORT, ParsedUrl};

/// The way in which waiters learn that a lock is free.
///
/// ```
/// use leasehold_redis::{NotificationMode, RedisConfig};
///
/// let config = RedisConfig::new().with_notifications(NotificationMode::Polled);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotificationMode {
    /// The server pushes notifications (`CLIENT TRACKING`). Without it, waiters poll.
    #[default]
    Pushed,
    /// Waiters poll.
    Polled,
}

/// The options of a backend, except for the address of the server.
///
/// ```
/// use std::time::Duration;
/// use leasehold_redis::RedisConfig;
///
/// let config = RedisConfig::new().with_prefix("shop:").with_timeout(Duration::from_millis(300));
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) prefix: Box<[u8]>,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) nodelay: bool,
    pub(crate) notifications: NotificationMode,
    pub(crate) fallback_poll_interval: Option<Duration>,
    /// `None` means the default name.
    pub(crate) name: Option<Box<str>>,
    pub(crate) credentials: Option<Arc<dyn CredentialsProvider>>,
}

impl RedisConfig {
    /// Creates the default configuration: no prefix, time-outs of 1 s, `TCP_NODELAY`, and pushed
    /// notifications.
    #[must_use]
    pub fn new() -> Self {
        Self {
            prefix: Box::default(),
            // Well below a third of the default TTL, so that a failed renewal can be retried.
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            nodelay: true,
            notifications: NotificationMode::default(),
            fallback_poll_interval: None,
            name: None,
            credentials: None,
        }
    }

    /// Sets the prefix of every lock name. Programs that share locks must use the same one.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// Sets the maximum time for opening a connection.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the maximum time for an answer, after which the connection is given up. That may take
    /// 20 ms more. Keep the time well below a third of the TTL.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Enables or disables `TCP_NODELAY`, which is faster for a few tasks. On by default.
    #[must_use]
    pub fn with_nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Sets the way in which waiters are notified.
    #[must_use]
    pub fn with_notifications(mut self, notifications: NotificationMode) -> Self {
        self.notifications = notifications;
        self
    }

    /// Sets the time after which a waiter retries without a notification. The default is 2 s, or
    /// the time at which the lock of the holder expires. A waiter that retries less often than
    /// every 5 s loses its place.
    #[must_use]
    pub fn with_fallback_poll_interval(mut self, interval: Duration) -> Self {
        self.fallback_poll_interval = Some(interval);
        self
    }

    /// Names the connections, as `CLIENT LIST` and `SLOWLOG` show them. By default a name is
    /// `leasehold:` and the default label: host, process id and program. An empty name names none.
    /// A server that refuses `CLIENT SETNAME` is used without a name.
    ///
    /// The name has only printable ASCII characters and no spaces, because Redis allows no others.
    /// Another name is an error of kind [`InvalidInput`](leasehold_core::ErrorKind::InvalidInput)
    /// when the backend connects.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Box<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Returns the name of the connections.
    pub(crate) fn name(&self) -> Result<String> {
        let is_allowed = |c: char| c.is_ascii_graphic();
        match &self.name {
            None => {
                let label = leasehold_core::default_label();
                Ok(format!(
                    "leasehold:{}",
                    label.replace(|c| !is_allowed(c), "_")
                ))
            }
            Some(name) if name.chars().all(is_allowed) => Ok(String::from(&**name)),
            Some(_) => Err(ERRORS.error(
                ErrorKind::InvalidInput,
                "connect",
                "the name of the connections has a character that Redis does not allow there; use printable ASCII \
                 characters without spaces",
            )),
        }
    }

    /// Sets where the user and the password of each connection come from, instead of the URL or the
    /// client.
    ///
    /// The provider is asked before each connection is opened, and once more if the server refuses
    /// what it gave. A connection that the server asks to authenticate again is replaced. Locks and
    /// waiters outlast that: after the first connection, refused credentials are an error of kind
    /// [`Unavailable`](leasehold_core::ErrorKind::Unavailable), which renewals and waiters retry.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use leasehold_core::Credentials;
    /// use leasehold_redis::RedisConfig;
    ///
    /// let credentials = Credentials::new("secret").with_username("shop");
    /// let config = RedisConfig::new().with_credentials(Arc::new(credentials));
    /// ```
    #[must_use]
    pub fn with_credentials(mut self, provider: Arc<dyn CredentialsProvider>) -> Self {
        self.credentials = Some(provider);
        self
    }

    /// Returns the client with this configuration's socket options.
    pub(crate) fn apply_to(&self, client: &Client) -> Result<Client> {
        #[cfg(feature = "tls")]
        choose_crypto_provider();
        let info = client
            .get_connection_info()
            .clone()
            .set_tcp_settings(self.tcp_settings());
        Client::open(info)
            .map_err(|error| error::from_command(error, "connect", error::SideEffect::None))
    }

    /// Returns socket options that detect a silent network within seconds: by keepalive probes when
    /// idle, and by unacknowledged data otherwise.
    fn tcp_settings(&self) -> TcpSettings {
        use redis::io::tcp::socket2::TcpKeepalive;
        let second = Duration::from_secs(1);
        let keepalive = TcpKeepalive::new().with_time(second).with_interval(second);
        #[cfg(not(any(
            windows,
            target_os = "openbsd",
            target_os = "redox",
            target_os = "solaris"
        )))]
        let keepalive = keepalive.with_retries(3);
        let settings = TcpSettings::default()
            .set_nodelay(self.nodelay)
            .set_keepalive(keepalive);
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        let settings = settings.set_user_timeout(2 * second);
        settings
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("prefix", &self.prefix.escape_ascii().to_string())
            .field("connect_timeout", &self.connect_timeout)
            .field("timeout", &self.timeout)
            .field("nodelay", &self.nodelay)
            .field("notifications", &self.notifications)
            .field("fallback_poll_interval", &self.fallback_poll_interval)
            .field("name", &self.name)
            .field("credentials", &self.credentials)
            .finish()
    }
}

/// Sets the process's crypto provider if there is none. Without one, the driver panics when several
/// are compiled in.
#[cfg(feature = "tls")]
fn choose_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // This fails only if another thread has just set one, which serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

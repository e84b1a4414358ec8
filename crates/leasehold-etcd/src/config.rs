//! [`EtcdConfig`].

use std::{sync::Arc, time::Duration};

use leasehold_core::CredentialsProvider;
use tonic::transport::Endpoint;

/// The server answers pings that come at least 5 s apart (`--grpc-keepalive-min-time`), and cuts
/// off who sends more.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_PATIENCE: Duration = Duration::from_secs(2);

/// Options of the backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// Put before every key. Empty by default.
    pub prefix: Arc<[u8]>,
    /// Names are written as they are, for locks that are shared with programs whose names contain
    /// `/` or `%`. Then a lock `a` is not free while anybody has or waits for `a/b`. Off by
    /// default.
    pub exact_names: bool,
    /// How long one member of the cluster may take to answer; at most a quarter of the TTL where
    /// one is known. 2 s by default: longer than an election.
    pub timeout: Duration,
    /// How long a connection may take to come about. 1 s by default.
    pub connect_timeout: Duration,
    /// How often a waiter looks by itself, although it is woken: some servers lose events after a
    /// compaction. 5 s by default.
    pub fallback_poll_interval: Duration,
    /// Supplies the user and the password. Without it they are those of the URL, or of the given
    /// client.
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
    /// Puts this before every key.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// Writes names as they are; see [`exact_names`](Self::exact_names).
    #[must_use]
    pub fn with_exact_names(mut self, exact: bool) -> Self {
        self.exact_names = exact;
        self
    }

    /// Waits this long for one member's answer.
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

    /// Sets where the user and the password come from: passwords that rotate then need no restart
    /// of the program.
    ///
    /// The provider is asked for each connection, and again whenever the server refuses a token,
    /// because the token has expired or because users or roles were changed. A user name is
    /// required. If the server refuses what it accepted before, the error is
    /// [`Unavailable`](leasehold_core::ErrorKind::Unavailable): the provider may have the next
    /// password a little later.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Arc<dyn CredentialsProvider>) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// The driver's settings for one member.
    pub(crate) fn apply_to(&self, endpoint: Endpoint) -> Endpoint {
        endpoint
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
    }
}

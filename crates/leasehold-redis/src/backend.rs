//! [`RedisBackend`]: the entry point of the crate.

use std::{fmt, sync::Arc, time::Duration};

use leasehold_core::{
    Capabilities, ErrorKind, Fairness, Fencing, HolderRef, Inspection, LockKey, LossDetection,
    Pong, Records, Restart, Result, Revocation, RevokeOutcome, Ttl, WaiterNotification,
    backend::{
        Attempt, Lease, LockBackend, RecordRead, RecordReading, Request, async_trait,
        support::check_runtime,
    },
};
use redis::Client;

use crate::{
    admin,
    cleanup::CleanupQueue,
    config::{NotificationMode, ParsedUrl, RedisConfig},
    connection::is_no_permission,
    connection_manager::ConnectionManager,
    error::{ERRORS, SideEffect},
    handshake, record,
};

/// The shortest TTL. Clock drift and network latency would use up a shorter one.
const MIN_TTL: u64 = 10;
/// The longest time for which closing waits for the cleanup of attempts of unknown outcome.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval between the attempts of a waiter that is not notified.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// A backend that keeps locks on one Redis or Valkey server.
///
/// All operations share one multiplexed connection, which is replaced when it fails. The
/// [crate documentation](crate) lists the guarantees.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_redis::Error> {
/// use leasehold_redis::RedisBackend;
///
/// let backend = RedisBackend::connect("redis://127.0.0.1/?prefix=shop:").await?;
/// # Ok(()) }
/// ```
pub struct RedisBackend {
    pub(crate) manager: Arc<ConnectionManager>,
    pub(crate) cleanup_queue: Arc<CleanupQueue>,
    pub(crate) capabilities: Capabilities,
}

impl RedisBackend {
    /// Connects to the server at `url`; the [crate](crate) lists the URL's options.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] if the URL is invalid. The message names the problem.
    /// - [`ErrorKind::Unavailable`] if the server cannot be reached, [`ErrorKind::Denied`] if it
    ///   refuses the user or the password, or shows a wrong certificate.
    /// - [`ErrorKind::Unsupported`] for a server before 6.2, a read-only replica, or TLS without
    ///   the feature `tls`.
    ///
    /// # Cancel safety
    /// Safe. A cancelled call leaves nothing on the server.
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        let ParsedUrl { client, config } = ParsedUrl::parse(url)?;
        Self::from_client(&client, config).await
    }

    /// Connects with the settings of `client`. Its RESP version does not matter: RESP3 is used if
    /// the server has it.
    ///
    /// The connection is a new one, because other users could close or block a shared one.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), except for an invalid URL.
    ///
    /// # Cancel safety
    /// Safe. A cancelled call leaves nothing on the server.
    pub async fn from_client(client: &Client, config: RedisConfig) -> Result<Arc<Self>> {
        check_runtime()?;
        let backend = Self::unconnected(client, config, false)?;
        let conn = backend.manager.connection().await?;
        Ok(Arc::new(Self {
            capabilities: capabilities(backend.manager.endpoint.clone(), conn.pushes, conn.restart),
            ..backend
        }))
    }

    /// Returns the capabilities that every server at `url` has, without connecting to it. A
    /// [`LazyBackend`](leasehold_core::backend::LazyBackend) reports them until it is connected.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the URL is invalid.
    pub fn provisional_capabilities(url: &str) -> Result<Capabilities> {
        let ParsedUrl { client, config } = ParsedUrl::parse(url)?;
        Ok(Self::weakest(&client, config)?.capabilities)
    }

    /// Returns a backend that is not connected, with the capabilities of the weakest server.
    pub(crate) fn weakest(client: &Client, config: RedisConfig) -> Result<Self> {
        let backend = Self::unconnected(client, config, false)?;
        let capabilities = capabilities(
            backend.manager.endpoint.clone(),
            false,
            Restart::FreesAtOnce,
        );
        Ok(Self {
            capabilities,
            ..backend
        })
    }

    /// Connects to a node of a quorum as [`from_client`](Self::from_client) does, but accepts a
    /// server that cannot be used now, because it may become usable later.
    pub(crate) async fn from_client_if_usable(
        client: &Client,
        config: RedisConfig,
    ) -> Result<Arc<Self>> {
        check_runtime()?;
        let backend = Self::unconnected(client, config, true)?;
        match backend.manager.connection().await {
            Ok(conn) => Ok(Arc::new(Self {
                capabilities: capabilities(
                    backend.manager.endpoint.clone(),
                    conn.pushes,
                    conn.restart,
                ),
                ..backend
            })),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(error),
            Err(_) => Ok(Arc::new(backend)),
        }
    }

    /// Returns a backend that is not connected, with the capabilities of most servers.
    fn unconnected(client: &Client, config: RedisConfig, is_node: bool) -> Result<Self> {
        let client = config.apply_to(&handshake::with_resp3(client)?)?;
        config.name()?;
        let endpoint = endpoint_of(&client);
        let pushes = config.notifications == NotificationMode::Pushed;
        let manager = ConnectionManager::new(client, config, endpoint, is_node);
        let capabilities = capabilities(manager.endpoint.clone(), pushes, Restart::AsPersisted);
        Ok(Self {
            manager,
            cleanup_queue: Arc::default(),
            capabilities,
        })
    }
}

#[async_trait]
impl LockBackend for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        // An earlier attempt may have registered the waiter, which is not known here.
        let registered = request.waiting().keeps_waiting;
        self.attempt(request, None, registered).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let request = request.with_waiting(|waiting| waiting.keeps_waiting = true);
        if request.is_cancelled() {
            return Box::pin(self.wait(request, None)).await;
        }
        // Most requests are granted at once and need none of a waiter's state.
        match self.attempt(request.clone(), None, false).await {
            Ok(Attempt::Granted(lease)) => Ok(lease),
            other => Box::pin(self.wait(request, Some(other))).await,
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        admin::inspect(&self.manager, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        admin::revoke(&self.manager, holder, revocation).await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        record::read(&self.manager, read).await
    }

    async fn ping(&self) -> Result<Pong> {
        let conn = self.manager.connection_flushed("ping").await?;
        match conn.send(&redis::cmd("PING")).await {
            Ok(_) => Ok(Pong::new()),
            // The server has answered. A user without the right to `PING` may still use locks.
            Err(error) if is_no_permission(&error) => Ok(Pong::new()),
            Err(error) => Err(self
                .manager
                .map_error(&conn, error, "ping", SideEffect::None)),
        }
    }

    async fn close(&self) -> Result<()> {
        // The cleanup of attempts of unknown outcome needs the connection.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, self.cleanup_queue.removed()).await);
        self.manager.close();
        Ok(())
    }
}

fn capabilities(endpoint: String, pushes: bool, restart: Restart) -> Capabilities {
    let mut capabilities = Capabilities::new(ERRORS.backend());
    capabilities.endpoint = endpoint;
    capabilities.shared = true;
    capabilities.permits = true;
    capabilities.min_ttl = Ttl::from_millis(MIN_TTL).unwrap_or(Ttl::MIN);
    capabilities.fencing = Fencing::Clocked;
    // Without notifications, a waiter cannot know whether earlier waiters have had their chance.
    capabilities.fairness = if pushes {
        Fairness::BestEffort
    } else {
        Fairness::None
    };
    capabilities.waiter_notification = if pushes {
        WaiterNotification::Pushed
    } else {
        WaiterNotification::Polled(POLL)
    };
    capabilities.loss_detection = LossDetection::Renewal;
    capabilities.restart = restart;
    capabilities.pipelined_release = true;
    capabilities.inspect = true;
    capabilities.revoke = true;
    // The server confirms a write before it is on disk or on a replica.
    capabilities.records = Records::UntilDataLoss;
    capabilities
}

/// Returns the server's address without secrets.
fn endpoint_of(client: &Client) -> String {
    let info = client.get_connection_info();
    let db = info.redis_settings().db();
    match info.addr() {
        redis::ConnectionAddr::Unix(path) => format!("redis+unix://{}?db={db}", path.display()),
        redis::ConnectionAddr::TcpTls { host, port, .. } => {
            format!("rediss://{}:{port}/{db}", bracketed(host))
        }
        redis::ConnectionAddr::Tcp(host, port) => {
            format!("redis://{}:{port}/{db}", bracketed(host))
        }
        other => format!("redis://{other}/{db}"),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

impl fmt::Display for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.manager.endpoint)
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("manager", &self.manager)
            .field("config", &self.manager.config)
            .finish_non_exhaustive()
    }
}

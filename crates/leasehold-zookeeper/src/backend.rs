//! [`ZookeeperBackend`]: the locks of a ZooKeeper ensemble.

use std::{fmt, sync::Arc, time::Duration};

use leasehold_core::{
    Capabilities, Expiry, Fairness, Fencing, HolderRef, Inspection, LockKey, LossDetection, Pong,
    Records, Restart, Result, Revocation, RevokeOutcome, Ttl, WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, RecordRead, RecordReading, Request, async_trait,
        support::{check_runtime, contained},
    },
    session::{Sessions, attempt_with_session_retry, cancelled, queue_with_session_retry},
};
use tokio::time::timeout;
use zookeeper_client::{Client, Connector};

use crate::{
    candidate,
    config::{ParsedUrl, ZookeeperConfig},
    connection::Cluster,
    contended::ContendedHint,
    error::ERRORS,
    inspect,
    keys::Directory,
    pending_lock::{PendingLock, lost_place},
    queue::{self, Standing},
    record, revoke,
    session::ZookeeperSessions,
    wake,
};

/// The shortest TTL. The deadline of a shorter session would leave too little time.
const MIN_TTL: Duration = Duration::from_secs(1);
/// The interval at which a directory whose numbers are used up is read.
const USED_UP: Duration = Duration::from_millis(200);
/// The time for which an attempt of a client that keeps waiting stays in the queue.
const LINGER: Duration = Duration::from_millis(20);

/// Locks on a ZooKeeper ensemble.
///
/// All locks of one TTL share a ZooKeeper session, up to a thousand locks for each session. The
/// [crate](crate) documents the guarantees.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_zookeeper::Error> {
/// use leasehold_zookeeper::ZookeeperBackend;
///
/// let url = "zookeeper://10.0.0.1,10.0.0.2,10.0.0.3/shop/locks?tick=2s";
/// let backend = ZookeeperBackend::connect(url).await?;
/// # Ok(()) }
/// ```
pub struct ZookeeperBackend {
    cluster: Arc<Cluster>,
    sessions: Sessions<ZookeeperSessions>,
    /// The sessions of waiters.
    waiting: Sessions<ZookeeperSessions>,
    contended: ContendedHint,
    capabilities: Capabilities,
}

impl ZookeeperBackend {
    /// Connects to the ensemble at `url`; the [crate](crate) lists the URL's options.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] for the URL, naming what is wrong with it.
    /// - [`ErrorKind::Unavailable`] if no server answers, [`ErrorKind::Denied`] if the user or the
    ///   password is refused.
    /// - [`ErrorKind::Unsupported`] for TLS without the feature `tls`.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    ///
    /// [`ErrorKind::InvalidInput`]: leasehold_core::ErrorKind::InvalidInput
    /// [`ErrorKind::Unavailable`]: leasehold_core::ErrorKind::Unavailable
    /// [`ErrorKind::Denied`]: leasehold_core::ErrorKind::Denied
    /// [`ErrorKind::Unsupported`]: leasehold_core::ErrorKind::Unsupported
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        Self::start(Cluster::of_location(ParsedUrl::parse(url)?)).await
    }

    /// Uses sessions that `connector` opens at `hosts` (`h1:2181,h2:2181`), with the authentication
    /// and the TLS settings of the connector.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`ErrorKind::InvalidInput`] for the configuration.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    ///
    /// [`ErrorKind::InvalidInput`]: leasehold_core::ErrorKind::InvalidInput
    pub async fn from_connector(
        connector: Connector,
        hosts: &str,
        config: ZookeeperConfig,
    ) -> Result<Arc<Self>> {
        config.check()?;
        Self::start(Cluster::of_connector(connector, hosts, config)).await
    }

    /// Uses the session of `client`, which the program may also use for other requests.
    ///
    /// The only TTL is the negotiated time-out of that session, and the backend ends with it. With
    /// a [connector](Self::from_connector), sessions are opened as they are needed. Closing the
    /// backend deletes the nodes of Leasehold and leaves the session open.
    ///
    /// # Errors
    /// As [`from_connector`](Self::from_connector); [`ErrorKind::Closed`] if the session is over.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    ///
    /// [`ErrorKind::Closed`]: leasehold_core::ErrorKind::Closed
    pub async fn from_client(client: Client, config: ZookeeperConfig) -> Result<Arc<Self>> {
        config.check()?;
        Self::start(Cluster::of_client(client, config)).await
    }

    /// Returns the capabilities of any ensemble at `url`, without a connection to it. For a
    /// [`LazyBackend`](leasehold_core::backend::LazyBackend).
    ///
    /// # Errors
    /// As [`connect`](Self::connect) for the URL.
    pub fn provisional_capabilities(url: &str) -> Result<Capabilities> {
        let cluster = Cluster::of_location(ParsedUrl::parse(url)?);
        let mut capabilities = capabilities(cluster.endpoint());
        capabilities.min_ttl = Ttl::new(MIN_TTL).map_err(|error| ERRORS.named(error, "connect"))?;
        Ok(capabilities)
    }

    async fn start(cluster: Arc<Cluster>) -> Result<Arc<Self>> {
        check_runtime()?;
        // The driver may panic at an answer that is malformed.
        let limits = contained(cluster.limits(MIN_TTL)).await;
        let (shortest, longest) = limits.map_err(|error| ERRORS.named(error, "connect"))?;
        let mut capabilities = capabilities(cluster.endpoint());
        let ttl = |limit: Duration| {
            Ttl::from_millis(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
        };
        capabilities.min_ttl = ttl(shortest).map_err(|error| ERRORS.named(error, "connect"))?;
        capabilities.max_ttl = ttl(longest).map_err(|error| ERRORS.named(error, "connect"))?;
        let sessions = |for_waiters| {
            let cluster = Arc::clone(&cluster);
            Sessions::new(Arc::new(ZookeeperSessions {
                cluster,
                for_waiters,
            }))
        };
        let (sessions, waiting) = (sessions(false), sessions(true));
        Ok(Arc::new(Self {
            cluster,
            sessions,
            waiting,
            contended: ContendedHint::default(),
            capabilities,
        }))
    }

    fn directory(&self, request: &Request) -> Directory {
        self.cluster
            .names
            .directory(request.key(), request.mode().is_permit())
    }

    async fn pending(&self, request: &Request, directory: &Directory) -> Result<PendingLock> {
        PendingLock::claim(&self.sessions, request, directory).await
    }

    /// Returns whether a request that the shared connection was denied should be sent once more.
    async fn is_cured<T>(&self, operation: &'static str, outcome: &Result<T>) -> bool {
        if outcome.is_ok() {
            return false;
        }
        match self.cluster.shared(operation).await {
            Ok(link) => self.cluster.is_cured(operation, &link, outcome).await,
            Err(_unreachable) => false,
        }
    }

    /// Registers an acquisition that waits in a session of waiters.
    async fn waiter(&self, request: &Request, directory: &Directory) -> Result<PendingLock> {
        self.pending(request, directory)
            .await?
            .wait_in(&self.waiting, self.cluster.waiting_ttl())
            .await
    }

    /// Returns whether it waits in another session than the one that it will hold in. A client of
    /// the user's has only one session. The node of a candidate has no room for the token of an
    /// earlier node beside the proposal, so a candidate keeps its node.
    fn waits_apart(&self, request: &Request) -> bool {
        self.cluster.given().is_none()
            && request.proposal().is_none()
            && request.ttl() > self.cluster.waiting_ttl()
    }

    async fn try_once(
        &self,
        request: &Request,
        directory: &Directory,
    ) -> Result<Option<Arc<dyn Lease>>> {
        let contended = self.contended.is_set(directory.lane());
        if request.waiting().keeps_waiting {
            // A client that polls stays in the queue for a while. Otherwise it might never be
            // granted.
            return match self.waits_apart(request) {
                false => {
                    self.attempt(self.pending(request, directory).await?, Some(LINGER))
                        .await
                }
                true if contended => {
                    self.attempt(self.waiter(request, directory).await?, Some(LINGER))
                        .await
                }
                true => {
                    self.attempt(self.pending(request, directory).await?, None)
                        .await
                }
            };
        }
        let pending = self.pending(request, directory).await?;
        if contended {
            // The lock was taken the last time. A read costs the servers much less than a node that
            // is created in vain.
            let children = pending.list().await?;
            if queue::refusal(request.key(), request.mode(), &children)?.is_some() {
                return Ok(None);
            }
            self.contended.note(pending.lane, false);
        }
        self.attempt(pending, None).await
    }

    /// Queues, and leaves the queue if the lock is not granted at once, or within `linger`.
    async fn attempt(
        &self,
        pending: PendingLock,
        linger: Option<Duration>,
    ) -> Result<Option<Arc<dyn Lease>>> {
        let lane = pending.lane;
        let Some(mut queued) = pending.enqueue().await? else {
            return Ok(None);
        };
        let granted = match pending.first_look(&queued).await {
            Ok(Standing::Holds) => Ok(Some(None)),
            Ok(Standing::Waits(_)) => match linger {
                Some(linger) => timeout(linger, pending.wait(&mut queued))
                    .await
                    .map_or(Ok(None), |waited| waited.map(Some)),
                None => Ok(None),
            },
            Ok(Standing::Absent) => Err(lost_place()),
            Err(error) => Err(error),
        };
        match granted {
            Ok(Some(watch)) => pending.hold(queued, watch).await.map(Some),
            refused => {
                self.contended.note(lane, refused.is_ok());
                pending.leave(&queued).await;
                refused.map(|_| None)
            }
        }
    }

    /// Queues once, and waits until granted; leaves the queue on any other outcome.
    async fn queue(&self, request: &Request, directory: &Directory) -> Result<Arc<dyn Lease>> {
        let pending = if !self.waits_apart(request) {
            self.pending(request, directory).await?
        } else if self.contended.is_set(directory.lane()) {
            self.waiter(request, directory).await?
        } else {
            // A free lock takes one round trip.
            if let Some(lease) = self
                .attempt(self.pending(request, directory).await?, None)
                .await?
            {
                return Ok(lease);
            }
            request.set_contended();
            self.waiter(&request.as_new_owner(), directory).await?
        };
        let mut queued = loop {
            let queued = pending.enqueue().await?;
            if let Some(queued) = queued {
                break queued;
            }
            request.set_contended();
            tokio::select! {
                () = tokio::time::sleep(USED_UP) => {}
                () = pending.ended() => return Err(lost_place()),
                () = request.cancelled() => return Err(cancelled()),
            }
        };
        match pending.wait(&mut queued).await {
            Ok(watch) => {
                let contended = queued
                    .children
                    .as_deref()
                    .is_some_and(|children| pending.is_contended(children));
                self.contended.note(pending.lane, contended);
                pending.hold(queued, watch).await
            }
            Err(error) => {
                pending.leave(&queued).await;
                Err(error)
            }
        }
    }
}

#[async_trait]
impl LockBackend for ZookeeperBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        candidate::check_request(&request)?;
        let directory = self.directory(&request);
        let tried = attempt_with_session_retry(request.clone(), |request| {
            let (backend, directory) = (&self, &directory);
            async move { backend.try_once(&request, directory).await }
        });
        let tried = tried
            .await
            .map_err(|error| ERRORS.named(error, "acquire"))?;
        Ok(match tried {
            Some(lease) => Attempt::Granted(lease),
            None => {
                if self.cluster.used_up.since(directory.lane()).is_some() {
                    let contention = Contention {
                        retry_after: Some(USED_UP),
                        last_token: None,
                        wake: None,
                    };
                    return Ok(Attempt::Contended(contention));
                }
                let retry_after = Some(self.cluster.config.fallback_poll_interval);
                let wake = wake::until_retry(Arc::clone(&self.cluster), request, directory);
                Attempt::Contended(Contention {
                    retry_after,
                    last_token: None,
                    wake: Some(Box::pin(wake)),
                })
            }
        })
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        candidate::check_request(&request)?;
        let directory = self.directory(&request);
        let queued = queue_with_session_retry(request, |request| {
            let (backend, directory) = (&self, &directory);
            async move { backend.queue(&request, directory).await }
        });
        queued.await.map_err(|error| ERRORS.named(error, "acquire"))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        let inspected = inspect::inspect(&self.cluster, key).await;
        if self.is_cured("inspect", &inspected).await {
            return inspect::inspect(&self.cluster, key).await;
        }
        inspected
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        let revoked = revoke::revoke(&self.cluster, holder, revocation).await;
        if self.is_cured("revoke", &revoked).await {
            return revoke::revoke(&self.cluster, holder, revocation).await;
        }
        revoked
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        let reading = record::read(&self.cluster, &read).await;
        let outcome = reading.as_ref().map(|_| ()).map_err(Clone::clone);
        if self.is_cured("read_record", &outcome).await {
            return record::read(&self.cluster, &read).await;
        }
        reading
    }

    /// Waits for an answer of the leader, on a connection without locks.
    async fn ping(&self) -> Result<Pong> {
        let link = self.cluster.shared("ping").await?;
        self.cluster
            .ask_leader("ping", &link, self.cluster.config.timeout, "/")
            .await
            .map(|()| Pong::new())
    }

    async fn close(&self) -> Result<()> {
        let (waiting, sessions) = (self.waiting.close().await, self.sessions.close().await);
        self.cluster.close().await;
        waiting
            .and(sessions)
            .map_err(|error| ERRORS.named(error, "close"))
    }
}

fn capabilities(endpoint: String) -> Capabilities {
    let mut capabilities = Capabilities::new(ERRORS.backend());
    capabilities.endpoint = endpoint;
    capabilities.shared = true;
    capabilities.permits = true;
    capabilities.expiry = Expiry::Session;
    capabilities.fencing = Fencing::Durable;
    capabilities.fairness = Fairness::Fifo;
    capabilities.waiter_notification = WaiterNotification::Pushed;
    capabilities.loss_detection = LossDetection::Pushed;
    capabilities.restart = Restart::Keeps;
    // The requests of one session keep their order, but locks of different TTLs are in different
    // sessions.
    capabilities.pipelined_release = false;
    capabilities.inspect = true;
    capabilities.revoke = true;
    capabilities.records = Records::Durable;
    capabilities.proposals = true;
    capabilities
}

impl fmt::Display for ZookeeperBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.capabilities.endpoint)
    }
}

impl fmt::Debug for ZookeeperBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperBackend")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

//! [`EtcdBackend`]: locks on an etcd cluster.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use etcd_client::{Client, GetOptions};
use leasehold_core::{
    Capabilities, ErrorKind, Expiry, Fairness, Fencing, HolderRef, Inspection, LockKey,
    LossDetection, Pong, Records, Restart, Result, Revocation, RevokeOutcome, Ttl,
    WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, RecordRead, RecordReading, Request, async_trait,
        support::{check_runtime, supervised},
    },
    session::{Claim, Sessions, attempt_with_session_retry, queue_with_session_retry},
};

use crate::{
    admin,
    config::{EtcdConfig, ParsedUrl},
    connection::Cluster,
    error::ERRORS,
    keys::{EtcdKey, LockPrefix, value_of},
    pending_lock::{PendingLock, lost_position},
    proposal,
    queue::{QueueKey, QueuePosition, TxnKind},
    record,
    session::{EtcdSessions, Handle},
    versions::{self, Versions},
    waiters::{Registration, WaiterRegistry, Watched},
};

/// The server raises shorter TTLs to this one.
const MIN_TTL: u64 = 2_000;
/// The number of slots that are tried in order. Slots are reused.
const SLOTS: u32 = 8;

/// A backend for locks on an etcd cluster.
///
/// All locks of one TTL share one etcd lease, and all waiters share one watch stream. The
/// [crate](crate) documents the guarantees.
///
/// # Examples
///
/// ```no_run
/// use leasehold_core::LockClient;
/// use leasehold_etcd::EtcdBackend;
///
/// # async fn example() -> Result<(), leasehold_etcd::Error> {
/// let backend = EtcdBackend::connect("etcd://10.0.0.1,10.0.0.2,10.0.0.3/?prefix=shop/").await?;
/// let client = LockClient::new(backend);
/// # Ok(()) }
/// ```
pub struct EtcdBackend {
    cluster: Arc<Cluster>,
    sessions: Sessions<EtcdSessions>,
    /// The sessions of waiters.
    waiting: Sessions<EtcdSessions>,
    waiters: Arc<WaiterRegistry>,
    versions: Arc<Versions>,
    capabilities: Capabilities,
}

impl EtcdBackend {
    /// Connects to the cluster at `url`. The [crate](crate) lists the options of the URL.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] if the URL is invalid. The error names the part.
    /// - [`ErrorKind::Unavailable`] if no member answers, [`ErrorKind::Denied`] if the user or the
    ///   password is rejected.
    /// - [`ErrorKind::Unsupported`] for TLS without the feature `tls`, and for etcd's gRPC proxy.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        Self::connect_with(url, EtcdConfig::default()).await
    }

    /// Connects to the cluster at `url` with the options of `config`, such as a
    /// [`CredentialsProvider`](leasehold_core::CredentialsProvider). An option of the URL overrides
    /// `config`, except for the user: the credentials of a provider replace it.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn connect_with(url: &str, config: EtcdConfig) -> Result<Arc<Self>> {
        Self::start(Cluster::at(ParsedUrl::parse(url, config)?)).await
    }

    /// Creates a backend on the connection of `client`.
    ///
    /// Configure the client with `with_timeout`, `with_connect_timeout`, and `with_keep_alive` with
    /// `with_keep_alive_while_idle`. Otherwise a server that is stopped blocks the connection
    /// forever, and only the time-outs of this backend end its requests. The driver does not fail
    /// over between the endpoints of one client; [`connect`](Self::connect) does.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), except for the URL.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn from_client(client: Client, config: EtcdConfig) -> Result<Arc<Self>> {
        Self::start(Cluster::of_client(client, config)).await
    }

    /// Returns the capabilities of a cluster at `url` without connecting to it, for a
    /// [`LazyBackend`](leasehold_core::backend::LazyBackend).
    ///
    /// # Errors
    /// As [`connect`](Self::connect) for the URL.
    pub fn provisional_capabilities(url: &str) -> Result<Capabilities> {
        let cluster = Cluster::at(ParsedUrl::parse(url, EtcdConfig::default())?);
        let mut capabilities = capabilities(cluster.endpoint());
        capabilities.restart = Restart::FailOverMayFree;
        Ok(capabilities)
    }

    async fn start(cluster: Arc<Cluster>) -> Result<Arc<Self>> {
        check_runtime()?;
        // The driver connects to a dead port without an error, so a request follows.
        probe(&cluster, "connect").await?;
        let versions = Arc::new(Versions::default());
        match versions.check(&cluster).await {
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
            Err(error) => {
                tracing::warn!(target: "leasehold", %error, "the versions of the members are unknown");
            }
            Ok(()) => {}
        }
        let (weak, checked) = (Arc::downgrade(&cluster), Arc::clone(&versions));
        drop(tokio::spawn(supervised(move || {
            versions::watch(Weak::clone(&weak), Arc::clone(&checked))
        })));
        let capabilities = capabilities(cluster.endpoint());
        let sessions = |for_waiters| {
            let cluster = Arc::clone(&cluster);
            Sessions::new(Arc::new(EtcdSessions {
                cluster,
                for_waiters,
            }))
        };
        let (sessions, waiting) = (sessions(false), sessions(true));
        let waiters = WaiterRegistry::new(&cluster);
        Ok(Arc::new(Self {
            cluster,
            sessions,
            waiting,
            waiters,
            versions,
            capabilities,
        }))
    }

    fn lock_prefix(&self, request: &Request) -> Result<LockPrefix> {
        proposal::check(request)?;
        self.cluster
            .layout
            .lock_prefix(request.key(), request.mode().is_permit())
    }

    /// Claims a queue key for the request, before anything is sent.
    async fn new_pending(
        &self,
        request: &Request,
        lock_prefix: &LockPrefix,
    ) -> Result<PendingLock> {
        let mode = request.mode();
        let name = |handle: &Handle, number: u32| {
            if request.proposal().is_some() {
                let owner = request.owner().again(number as u16);
                return lock_prefix.candidate(handle.lease, owner);
            }
            // Many requests of one session for one lock are readers or permits. They need not try
            // all slots.
            let slot = if number < SLOTS {
                number
            } else {
                (request.owner().as_u128() as u32).rotate_left(number) | SLOTS
            };
            lock_prefix.key(mode, handle.lease, slot)
        };
        let claimed = self.sessions.claim(request, name).await;
        let claim = claimed.map_err(|error| ERRORS.named(error, "acquire"))?;
        let key = claim.name().clone();
        let layout = self.cluster.layout.clone();
        let queue_key = Arc::new(QueueKey {
            lock_prefix: lock_prefix.clone(),
            key,
            mode,
            value: value_of(request),
            layout,
        });
        Ok(PendingLock {
            claim,
            waiting: None,
            request: request.clone(),
            queue_key,
        })
    }

    /// Claims the key of `pending` in the session of waiters, too.
    async fn waiting_claim(&self, pending: &PendingLock) -> Result<Claim<EtcdSessions>> {
        let request = pending.request.clone().with_ttl(self.cluster.waiter_ttl());
        let key = pending.queue_key.key.clone();
        match self.waiting.claim(&request, |_, _| key.clone()).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                // An earlier acquisition left this key behind: use another one.
                pending.claim.tombstone();
                Err(lost_position())
            }
            claimed => claimed.map_err(|error| ERRORS.named(error, "acquire")),
        }
    }

    async fn try_once(
        &self,
        request: &Request,
        lock_prefix: &LockPrefix,
    ) -> Result<Option<Arc<dyn Lease>>> {
        let pending = self.new_pending(request, lock_prefix).await?;
        let handle = pending.claim.session().handle();
        let answer = pending
            .run(TxnKind::Attempt {
                lease: handle.lease,
            })
            .await?;
        match answer
            .txn()
            .and_then(|answer| pending.queue_key.parse_attempt(request.key(), answer))
        {
            Ok(QueuePosition::Holds(revision)) => pending.granted(revision).await.map(Some),
            Ok(QueuePosition::Waits(_)) => {
                pending.leave().await;
                Ok(None)
            }
            Ok(QueuePosition::Absent) => Ok(None),
            Err(error) => {
                pending.leave().await;
                Err(error)
            }
        }
    }

    /// Queues once and waits until the lock is granted. Leaves the queue on any other outcome.
    async fn queue(&self, request: &Request, lock_prefix: &LockPrefix) -> Result<Arc<dyn Lease>> {
        let mut pending = self.new_pending(request, lock_prefix).await?;
        if request.ttl() > self.cluster.waiter_ttl() {
            if !pending.queue_key.mode.is_permit() {
                let lease = pending.claim.session().handle().lease;
                let answer = pending.run(TxnKind::Attempt { lease }).await?;
                match answer
                    .txn()
                    .and_then(|answer| pending.queue_key.parse_attempt(request.key(), answer))
                {
                    Ok(QueuePosition::Holds(revision)) => return pending.granted(revision).await,
                    Ok(_) => {}
                    Err(error) => {
                        pending.leave().await;
                        return Err(error);
                    }
                }
            }
            pending.waiting = Some(self.waiting_claim(&pending).await?);
        }
        let answer = pending
            .run(TxnKind::Enqueue {
                lease: pending.queueing_lease(),
            })
            .await?;
        let granted = match answer
            .txn()
            .and_then(|answer| pending.queue_key.parse_enqueue(request.key(), answer))
        {
            Ok(QueuePosition::Holds(revision)) => pending.move_to_session(revision).await,
            Ok(QueuePosition::Waits(revision)) => {
                pending.wait(&self.cluster, &self.waiters, revision).await
            }
            Ok(QueuePosition::Absent) => Err(ERRORS.unexpected("acquire")),
            Err(error) => Err(error),
        };
        match granted {
            Ok(revision) => pending.granted(revision).await,
            Err(error) => {
                pending.leave().await;
                Err(error)
            }
        }
    }

    /// Completes when another attempt may succeed.
    async fn wait_for_change(
        registration: Registration,
        cluster: Arc<Cluster>,
        timeout: Duration,
        lock_prefix: LockPrefix,
    ) {
        if registration.establish(timeout).await.is_err() {
            return;
        }
        let before = registration.generation();
        let options = GetOptions::new()
            .with_range(lock_prefix.end())
            .with_limit(1)
            .with_keys_only();
        let first = EtcdKey::from(lock_prefix.start());
        match cluster.get("acquire", timeout, &first, Some(options)).await {
            Ok(held) if !held.kvs().is_empty() => registration.changed(before).await,
            // The lock is free, or its state is unknown.
            _ => {}
        }
    }
}

#[async_trait]
impl LockBackend for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.capabilities.clone();
        if self.versions.leader_may_revoke_leases() {
            capabilities.restart = Restart::FailOverMayFree;
        }
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let lock_prefix = self.lock_prefix(&request)?;
        let tried = attempt_with_session_retry(request.clone(), |request| {
            let (backend, lock_prefix) = (&self, &lock_prefix);
            async move { backend.try_once(&request, lock_prefix).await }
        });
        let tried = tried
            .await
            .map_err(|error| ERRORS.named(error, "acquire"))?;
        Ok(match tried {
            Some(lease) => Attempt::Granted(lease),
            None => {
                let (registration, cluster) = (
                    self.waiters.register(Watched::Lock(lock_prefix.clone())),
                    Arc::clone(&self.cluster),
                );
                let timeout = cluster.request_timeout(request.ttl());
                let retry_after = Some(cluster.config.fallback_poll_interval);
                let wake = Self::wait_for_change(registration, cluster, timeout, lock_prefix);
                Attempt::Contended(Contention {
                    retry_after,
                    last_token: None,
                    wake: Some(Box::pin(wake)),
                })
            }
        })
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let lock_prefix = self.lock_prefix(&request)?;
        let queued = queue_with_session_retry(request, |request| {
            let (backend, lock_prefix) = (&self, &lock_prefix);
            async move { backend.queue(&request, lock_prefix).await }
        });
        queued.await.map_err(|error| ERRORS.named(error, "acquire"))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        admin::inspect(&self.cluster, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        admin::revoke(&self.cluster, holder, revocation).await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        record::read(&self.cluster, &self.waiters, &read).await
    }

    /// Sends a linearizable read, which only a member with a leader answers.
    async fn ping(&self) -> Result<Pong> {
        probe(&self.cluster, "ping").await.map(|()| Pong::new())
    }

    async fn close(&self) -> Result<()> {
        self.versions.stop();
        self.waiters.close();
        let (waiting, sessions) = (self.waiting.close().await, self.sessions.close().await);
        waiting
            .and(sessions)
            .map_err(|error| ERRORS.named(error, "close"))
    }
}

/// Reads a key that never exists.
async fn probe(cluster: &Cluster, operation: &'static str) -> Result<()> {
    let options = GetOptions::new().with_keys_only().with_limit(1);
    cluster
        .get(
            operation,
            cluster.config.timeout,
            &cluster.layout.probe(),
            Some(options),
        )
        .await
        .map(drop)
}

fn capabilities(endpoint: String) -> Capabilities {
    let mut capabilities = Capabilities::new(ERRORS.backend());
    capabilities.endpoint = endpoint;
    capabilities.shared = true;
    capabilities.permits = true;
    capabilities.min_ttl = Ttl::from_millis(MIN_TTL).unwrap_or(Ttl::MIN);
    capabilities.expiry = Expiry::Session;
    capabilities.fencing = Fencing::Durable;
    capabilities.fairness = Fairness::Fifo;
    capabilities.waiter_notification = WaiterNotification::Pushed;
    capabilities.loss_detection = LossDetection::Renewal;
    capabilities.restart = Restart::Keeps;
    // Requests use separate HTTP/2 streams and may overtake each other.
    capabilities.pipelined_release = false;
    capabilities.inspect = true;
    capabilities.revoke = true;
    capabilities.records = Records::Durable;
    capabilities.proposals = true;
    capabilities
}

impl fmt::Display for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.capabilities.endpoint)
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

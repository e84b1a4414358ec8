//! [`EtcdBackend`].

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use etcd_client::{Client, GetOptions};
use leasehold_core::{
    Capabilities, ErrorKind, Expiry, Fairness, Fencing, HolderRef, Inspection, LockKey,
    LossDetection, Pong, Restart, Result, Revocation, RevokeOutcome, Ttl, WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, Request, async_trait,
        support::{check_runtime, supervised},
    },
    session::{Claim, Sessions, attempt_with_session_retry, queue_with_session_retry},
};

use crate::{
    config::EtcdConfig,
    connection::Cluster,
    error::{self, BACKEND, named},
    inspect,
    keys::{Directory, EtcdKey, value_of},
    pending_lock::{PendingLock, lost_place},
    queue::{Place, Standing, Step},
    releases, revoke,
    session::{EtcdSessions, Handle},
    url::ParsedUrl,
    waiters::{Registration, WaiterRegistry},
};

/// The server raises shorter leases to this.
const MIN_TTL: u64 = 2_000;
/// Slots that are tried in order; they are used again and again.
const SLOTS: u32 = 8;

/// Locks on an etcd cluster.
///
/// All locks of one TTL live in one etcd lease, and all waiters share one watch stream. See the
/// [crate](crate) for what is guaranteed.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_etcd::Error> {
/// use leasehold_etcd::EtcdBackend;
///
/// let backend = EtcdBackend::connect("etcd://10.0.0.1,10.0.0.2,10.0.0.3/?prefix=shop/").await?;
/// # Ok(()) }
/// ```
pub struct EtcdBackend {
    cluster: Arc<Cluster>,
    sessions: Sessions<EtcdSessions>,
    /// The session of those who wait.
    waiting: Sessions<EtcdSessions>,
    watches: Arc<WaiterRegistry>,
    capabilities: Capabilities,
}

impl EtcdBackend {
    /// Connects to the cluster at `url`; the [crate](crate) lists the URL's options.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] for the URL, naming what is wrong with it.
    /// - [`ErrorKind::Unavailable`] if no member answers, [`ErrorKind::Denied`] if the user or the
    ///   password is refused.
    /// - [`ErrorKind::Unsupported`] for TLS without the feature `tls`, and for etcd's gRPC proxy.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        Self::connect_with(url, EtcdConfig::default()).await
    }

    /// Connects to the cluster at `url` with the options of `config`, such as a
    /// [`CredentialsProvider`](leasehold_core::CredentialsProvider). What the URL says too is as
    /// the URL says, except for the user: a provider's credentials are used in its place.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn connect_with(url: &str, config: EtcdConfig) -> Result<Arc<Self>> {
        Self::start(Cluster::at(ParsedUrl::parse(url, config)?)).await
    }

    /// Uses the connection of `client`.
    ///
    /// Give it `with_timeout`, `with_connect_timeout`, and `with_keep_alive` with
    /// `with_keep_alive_while_idle`: a server that is stopped otherwise hangs the connection for
    /// ever, and only this backend's own time-outs end its requests. The driver does not fail over
    /// between the endpoints of one client; [`connect`](Self::connect) does.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), except for the URL.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn from_client(client: Client, config: EtcdConfig) -> Result<Arc<Self>> {
        Self::start(Cluster::of_client(client, config)).await
    }

    /// Returns what any cluster at `url` does, without connecting to it. For a
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
        // The driver connects to a port that nobody listens on without an error: ask something.
        probe(&cluster, "connect").await?;
        match releases::check(&cluster).await {
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
            Err(error) => {
                tracing::warn!(target: "leasehold", %error, "cannot learn which releases of etcd the members run");
            }
            Ok(()) => {}
        }
        let watched = Arc::downgrade(&cluster);
        drop(tokio::spawn(supervised(move || {
            releases::watch(Weak::clone(&watched))
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
        let watches = WaiterRegistry::new(&cluster);
        Ok(Arc::new(Self {
            cluster,
            sessions,
            waiting,
            watches,
            capabilities,
        }))
    }

    fn check(&self, request: &Request) -> Result<Directory> {
        self.capabilities
            .check(request.mode(), request.ttl())
            .map_err(|error| error.with_operation("acquire"))?;
        self.cluster
            .names
            .directory(request.key(), request.mode().is_permit())
    }

    /// Claims a place for the request, before anything is sent.
    async fn pending(&self, request: &Request, directory: &Directory) -> Result<PendingLock> {
        let mode = request.mode();
        let name = |handle: &Handle, number: u32| {
            // Many at a time in one session are many readers or permits: they need not try all
            // slots.
            let slot = if number < SLOTS {
                number
            } else {
                (request.owner().as_u128() as u32).rotate_left(number) | SLOTS
            };
            directory.key(mode, handle.lease, slot)
        };
        let claimed = self.sessions.claim(request, name).await;
        let claim = claimed.map_err(|error| named(error, "acquire"))?;
        let key = claim.name().clone();
        let names = self.cluster.names.clone();
        let place = Arc::new(Place {
            directory: directory.clone(),
            key,
            mode,
            value: value_of(request),
            names,
        });
        Ok(PendingLock {
            claim,
            waiting: None,
            request: request.clone(),
            place,
        })
    }

    /// Claims the pending's key in the session of those who wait, too.
    async fn claim_to_wait(&self, pending: &PendingLock) -> Result<Claim<EtcdSessions>> {
        let request = pending.request.clone().with_ttl(self.cluster.waiting_ttl());
        let key = pending.place.key.clone();
        match self.waiting.claim(&request, |_, _| key.clone()).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                // Left behind by an earlier one: another key.
                pending.claim.retire();
                Err(lost_place())
            }
            claimed => claimed.map_err(|error| named(error, "acquire")),
        }
    }

    async fn try_once(
        &self,
        request: &Request,
        directory: &Directory,
    ) -> Result<Option<Arc<dyn Lease>>> {
        let pending = self.pending(request, directory).await?;
        let handle = pending.claim.session().handle();
        let answer = pending
            .run(Step::Attempt {
                lease: handle.lease,
            })
            .await?;
        match answer
            .txn()
            .and_then(|answer| pending.place.attempted(request.key(), answer))
        {
            Ok(Standing::Holds(revision)) => pending.granted(revision).await.map(Some),
            Ok(Standing::Waits(_)) => {
                pending.leave().await;
                Ok(None)
            }
            Ok(Standing::Absent) => Ok(None),
            Err(error) => {
                pending.leave().await;
                Err(error)
            }
        }
    }

    /// Queues once, and waits until granted; leaves the queue on any other outcome.
    async fn queue(&self, request: &Request, directory: &Directory) -> Result<Arc<dyn Lease>> {
        let mut pending = self.pending(request, directory).await?;
        if request.ttl() > self.cluster.waiting_ttl() {
            if !pending.place.mode.is_permit() {
                let lease = pending.claim.session().handle().lease;
                let answer = pending.run(Step::Attempt { lease }).await?;
                match answer
                    .txn()
                    .and_then(|answer| pending.place.attempted(request.key(), answer))
                {
                    Ok(Standing::Holds(revision)) => return pending.granted(revision).await,
                    Ok(_) => {}
                    Err(error) => {
                        pending.leave().await;
                        return Err(error);
                    }
                }
            }
            pending.waiting = Some(self.claim_to_wait(&pending).await?);
        }
        let answer = pending
            .run(Step::Enqueue {
                lease: pending.queueing_lease(),
            })
            .await?;
        let granted = match answer
            .txn()
            .and_then(|answer| pending.place.enqueued(request.key(), answer))
        {
            Ok(Standing::Holds(revision)) => pending.hold(revision).await,
            Ok(Standing::Waits(revision)) => {
                pending.wait(&self.cluster, &self.watches, revision).await
            }
            Ok(Standing::Absent) => Err(error::protocol("acquire")),
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

    /// Completes when trying again makes sense.
    async fn woken(
        watching: Registration,
        cluster: Arc<Cluster>,
        patience: Duration,
        directory: Directory,
    ) {
        if watching.warm(patience).await.is_err() {
            return;
        }
        let before = watching.generation();
        let options = GetOptions::new()
            .with_range(directory.end())
            .with_limit(1)
            .with_keys_only();
        let first = EtcdKey::from(directory.start());
        match cluster
            .get("acquire", patience, &first, Some(options))
            .await
        {
            Ok(held) if !held.kvs().is_empty() => watching.changed(before).await,
            // Free already, or nobody knows.
            _ => {}
        }
    }
}

#[async_trait]
impl LockBackend for EtcdBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.capabilities.clone();
        if self.cluster.releases.may_revoke() {
            capabilities.restart = Restart::FailOverMayFree;
        }
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let directory = self.check(&request)?;
        let tried = attempt_with_session_retry(request.clone(), |request| {
            let (backend, directory) = (&self, &directory);
            async move { backend.try_once(&request, directory).await }
        });
        let tried = tried.await.map_err(|error| named(error, "acquire"))?;
        Ok(match tried {
            Some(lease) => Attempt::Granted(lease),
            None => {
                let (watching, cluster) = (self.watches.on(&directory), Arc::clone(&self.cluster));
                let patience = cluster.patience(request.ttl());
                let retry_after = Some(cluster.config.fallback_poll_interval);
                let wake = Self::woken(watching, cluster, patience, directory);
                Attempt::Contended(Contention {
                    retry_after,
                    last_token: None,
                    wake: Some(Box::pin(wake)),
                })
            }
        })
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let directory = self.check(&request)?;
        let queued = queue_with_session_retry(request, |request| {
            let (backend, directory) = (&self, &directory);
            async move { backend.queue(&request, directory).await }
        });
        queued.await.map_err(|error| named(error, "acquire"))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        inspect::inspect(&self.cluster, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        revoke::revoke(&self.cluster, holder, revocation).await
    }

    /// A linearizable read, which only a member with a leader answers.
    async fn ping(&self) -> Result<Pong> {
        probe(&self.cluster, "ping").await.map(|()| Pong::new())
    }

    async fn close(&self) -> Result<()> {
        self.cluster.releases.stop();
        self.watches.close();
        let (waiting, sessions) = (self.waiting.close().await, self.sessions.close().await);
        waiting.and(sessions).map_err(|error| named(error, "close"))
    }
}

/// Reads a key that is never there.
async fn probe(cluster: &Cluster, operation: &'static str) -> Result<()> {
    let options = GetOptions::new().with_keys_only().with_limit(1);
    cluster
        .get(
            operation,
            cluster.config.timeout,
            &cluster.names.probe(),
            Some(options),
        )
        .await
        .map(drop)
}

fn capabilities(endpoint: String) -> Capabilities {
    let mut capabilities = Capabilities::new(BACKEND);
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
    // Requests travel on streams of their own and may overtake each other.
    capabilities.pipelined_release = false;
    capabilities.inspect = true;
    capabilities.revoke = true;
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

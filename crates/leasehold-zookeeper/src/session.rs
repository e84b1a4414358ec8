//! Sessions. Each is one ZooKeeper session, with an ephemeral node of its own.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use leasehold_core::{
    AcquisitionId, Deadline, Error, ErrorKind, LossReason, Result, Timestamp, Ttl,
    backend::{
        async_trait,
        support::{BatchLimits, Batcher},
    },
    session::{Claim, Opened, Owned, Session, SessionClock, SessionDriver},
};
use zookeeper_client::{Client, CreateMode, Error as Driver, StateWatcher};

use crate::{
    batch::{BatchExecutor, Done, Job, Line},
    connection::{Cluster, Link},
    error::{ERRORS, SideEffect},
    keys::{Node, Uuid},
    liveness::{HEARTBEAT_PART, Liveness},
    node_data::shown,
    watch_queue::WatchQueue,
};

/// The most claims in one session. Each needs room for a watch.
const CLAIMS: usize = 1_000;
/// The most bytes of paths in one session. When a session ends, the leader sends all its paths to
/// the followers in one message. A message of more than 1 MiB (`jute.maxbuffer`) stops the ensemble
/// (ZOOKEEPER-4306). The other half is room for nodes that lost answers have left behind.
const PATH_BYTES: usize = 512 * 1024;
/// The bytes of the sequence number and of the length field before each path in that message.
const AROUND_PATH: usize = 14;
/// The most deletes in flight at a time.
const DELETES: usize = 100;
/// The longest pause between two sends of a connected driver, as a part of the time-out. The driver
/// sends a ping after 3/20 of it, and checks every 1/20.
const DRIVERS_SILENCE: u32 = 4;
/// Measured on two cores with 1 to 256 tasks.
const LIMITS: BatchLimits = BatchLimits {
    alone: 1,
    calls: 1,
    undivided: 1,
    batch: 64,
};

pub(crate) type ZookeeperSession = Session<ZookeeperSessions>;

/// Opens, renews and closes sessions.
#[derive(Debug)]
pub(crate) struct ZookeeperSessions {
    pub(crate) cluster: Arc<Cluster>,
    /// Whether these are sessions of waiters. The servers may grant those a longer time-out than
    /// asked for, because no user chose their TTL.
    pub(crate) for_waiters: bool,
}

/// One session.
pub(crate) struct Handle {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) line: Arc<Line>,
    pub(crate) patience: Duration,
    /// The ZooKeeper session.
    pub(crate) session: i64,
    /// The first 32 bits of its uuids.
    pub(crate) tag: u32,
    /// Its node.
    node: String,
    /// `None` once the tasks of the session were started.
    state: Mutex<Option<StateWatcher>>,
    executor: Arc<BatchExecutor>,
    batcher: Arc<Batcher<BatchExecutor>>,
    /// `None` for a session of waiters: it holds no locks, so its deadline does not matter.
    liveness: Option<Liveness>,
    pub(crate) losses: Arc<WatchQueue>,
    /// The acquisitions that an operator has revoked.
    revoked: Mutex<HashSet<Uuid>>,
}

impl Handle {
    /// Returns its connection.
    pub(crate) fn link(&self, operation: &'static str) -> Result<Arc<Link>> {
        self.line.link(operation)
    }

    /// Takes the watcher of the connection's state. Returns `None` after the first call.
    pub(crate) fn take_state_watcher(&self) -> Option<StateWatcher> {
        // Nothing panics while it is held.
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Returns whether nothing is held in this session.
    pub(crate) fn is_for_waiters(&self) -> bool {
        self.liveness.is_none()
    }

    /// Records that an operator has revoked an acquisition. The next reconciliation reports it.
    pub(crate) fn revoke(&self, uuid: Uuid) {
        self.revoked().insert(uuid);
    }

    /// Forgets the revocation of an acquisition that has ended.
    pub(crate) fn forget(&self, uuid: Uuid) {
        self.revoked().remove(&uuid);
    }

    fn revoked(&self) -> std::sync::MutexGuard<'_, HashSet<Uuid>> {
        // Nothing panics while it is held.
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a heartbeat to the leader, and records its answer.
    pub(crate) async fn beat(&self, session: &ZookeeperSession) {
        let (Ok(link), Some(liveness)) = (self.link("renew"), &self.liveness) else {
            return;
        };
        let sent = session.now();
        match self
            .cluster
            .ask_leader("renew", &link, self.patience, &self.node)
            .await
        {
            Ok(()) => liveness.beat(sent, session.now()),
            Err(error) => {
                tracing::trace!(target: "leasehold", %error, "the leader did not answer a heartbeat");
            }
        }
    }
}

/// Runs a job of one claim, alone or in a batch with other jobs of its session.
pub(crate) async fn run(claim: &Claim<ZookeeperSessions>, job: Job) -> Result<Done> {
    let (operation, handle) = (job.operation, claim.session().handle());
    let ran = handle.batcher.run(&handle.executor, job).await;
    let done = ran
        .map_err(|error| ERRORS.named(error, operation))
        .flatten();
    if let Err(error) = &done {
        note(claim, error);
    }
    done
}

/// Ends the session, or marks the claim as uncertain, if this error of a request demands it.
pub(crate) fn note(claim: &Claim<ZookeeperSessions>, error: &Error) {
    match error.kind() {
        // Only an error of the driver says that the session is over. Without a source, the error
        // means that a node was removed.
        ErrorKind::Lost if std::error::Error::source(error).is_some() => {
            claim.session().end(LossReason::SessionEnded);
        }
        ErrorKind::Indeterminate | ErrorKind::UnexpectedResponse => claim.mark_uncertain(),
        _ => {}
    }
}

impl ZookeeperSessions {
    fn patience(&self, ttl: Ttl) -> Duration {
        if self.for_waiters {
            self.cluster.patience_to_wait(ttl)
        } else {
            self.cluster.patience(ttl)
        }
    }

    /// Creates the session's node.
    async fn mark(&self, link: &Link, patience: Duration, node: &str, label: &[u8]) -> Result<()> {
        let create = async || {
            let ephemeral = CreateMode::Ephemeral.with_acls(self.cluster.config.access.acls());
            link.client.create(node, label, &ephemeral).await.map(drop)
        };
        let created = async {
            match create().await {
                Err(Driver::NoNode) => {
                    self.cluster
                        .make(link, &self.cluster.names.sessions())
                        .await?;
                    create().await
                }
                created => created,
            }
        };
        // The node of a session holds no lock, so a lost answer is harmless.
        self.cluster
            .ask("acquire", SideEffect::None, patience, created)
            .await
    }

    /// Creates the record of the session's heartbeats, which its deadlines are derived from.
    async fn liveness(
        &self,
        link: &Link,
        time: &SessionClock,
        connecting: Timestamp,
        node: &str,
    ) -> Result<Liveness> {
        let (cluster, ttl) = (&self.cluster, time.ttl().as_duration());
        let tick = cluster.config.tick.unwrap_or(ttl / 2);
        if cluster.given().is_none() {
            // A session is opened by a transaction, which the leader has seen.
            return Ok(Liveness::new(tick, connecting));
        }
        let patience = cluster.patience(time.ttl());
        let beat = async || {
            let sent = time.now();
            cluster.ask_leader("renew", link, patience, node).await?;
            Ok::<_, Error>((sent, time.now()))
        };
        let first = beat().await?;
        tokio::time::sleep(ttl / HEARTBEAT_PART).await;
        let second = beat().await?;
        let liveness = Liveness::of_given(tick, ttl / DRIVERS_SILENCE, first.0);
        for (sent, answered) in [first, second] {
            liveness.beat(sent, answered);
        }
        Ok(liveness)
    }
}

#[async_trait]
impl SessionDriver for ZookeeperSessions {
    type Handle = Handle;
    type Claim = Node;

    fn capacity(&self) -> usize {
        PATH_BYTES
    }

    fn weight(&self, node: &Node) -> usize {
        (node.path.len() + AROUND_PATH).max(PATH_BYTES / CLAIMS)
    }

    async fn open(&self, time: &SessionClock) -> Result<Opened<Handle>> {
        let (cluster, ttl) = (&self.cluster, time.ttl().as_duration());
        let connecting = time.now();
        let link = cluster.connect("acquire", ttl).await?;
        let negotiated = link.client.session_timeout();
        if negotiated != ttl && !self.for_waiters {
            return Err(ERRORS.error(
                ErrorKind::InvalidInput,
                "acquire",
                format!(
                    "the servers changed the TTL of {} to a session time-out of {negotiated:?}; \
                     use a TTL that they accept (by default 2 to 20 times their tickTime; \
                     see minSessionTimeout and maxSessionTimeout)",
                    time.ttl()
                ),
            ));
        }
        let patience = self.patience(time.ttl());
        let tag = AcquisitionId::random().as_u128() as u32;
        let session = link.client.session_id().0;
        let (node, label) = (
            cluster.names.session(session, tag),
            shown(time.label()).as_bytes().to_vec(),
        );
        let liveness = match self.for_waiters {
            true => None,
            false => Some(self.liveness(&link, time, connecting, &node).await?),
        };
        let sent = time.now();
        // There is no deadline yet, so this request may use the whole TTL.
        let patience_to_mark = cluster.config.timeout.min(ttl);
        let mut marked = self.mark(&link, patience_to_mark, &node, &label).await;
        if cluster.is_cured("acquire", &link, &marked).await {
            marked = self.mark(&link, patience_to_mark, &node, &label).await;
        }
        marked?;
        let deadline = time.deadline_from(heard(liveness.as_ref(), sent));
        let state = Mutex::new(Some(link.client.state_watcher()));
        let line = Arc::new(Line::new(link));
        let executor = Arc::new(BatchExecutor {
            cluster: Arc::clone(cluster),
            line: Arc::clone(&line),
            patience,
            session,
            node: node.clone(),
            label,
            known: Mutex::default(),
        });
        let handle = Handle {
            cluster: Arc::clone(cluster),
            line,
            patience,
            session,
            tag,
            node,
            state,
            executor,
            batcher: Arc::new(Batcher::new(LIMITS)),
            liveness,
            losses: Arc::default(),
            revoked: Mutex::default(),
        };
        Ok(Opened { handle, deadline })
    }

    async fn renew(&self, handle: &Handle, time: &SessionClock) -> Result<Deadline> {
        let link = handle.link("renew")?;
        let sent = time.now();
        let checked = async {
            let mut check = link.client.new_multi_writer();
            check.add_check_version(&handle.node, -1)?;
            check.commit().await.map_err(Driver::from)
        };
        let checked = async {
            match checked.await {
                // The node was removed, so nothing proves that the session is alive.
                Err(Driver::NoNode) => Err(Driver::SessionExpired),
                checked => checked,
            }
        };
        self.cluster
            .ask("renew", SideEffect::None, handle.patience, checked)
            .await?;
        Ok(time.deadline_from(heard(handle.liveness.as_ref(), sent)))
    }

    async fn list_owned(&self, handle: &Handle) -> Result<Owned<Node>> {
        let link = handle.link("reconcile")?;
        let listing = link.client.list_ephemerals(self.cluster.names.ephemerals());
        let paths = self
            .cluster
            .ask("reconcile", SideEffect::None, handle.patience, listing)
            .await?;
        let node = |path: String| {
            let uuid = Uuid::of_name(path.rsplit('/').next()?)?;
            // Another program may share the session, if the user supplied the client.
            (uuid.session() == Some(handle.tag)).then(|| Node {
                uuid,
                path: path.into(),
            })
        };
        let claims: Vec<_> = paths.into_iter().filter_map(node).collect();
        let revoked = handle.revoked();
        let broken = claims
            .iter()
            .filter(|node| revoked.contains(&node.uuid))
            .cloned()
            .collect();
        drop(revoked);
        Ok(Owned {
            claims,
            revoked: broken,
        })
    }

    async fn delete_orphans(&self, handle: &Handle, orphans: Vec<Node>) -> Result<()> {
        let link = handle.link("reconcile")?;
        for orphans in orphans.chunks(DELETES) {
            let deleted = join_all(orphans.iter().map(|node| delete(&link.client, &node.path)));
            let deleted = async { deleted.await.into_iter().collect::<Result<(), Driver>>() };
            self.cluster
                .ask("reconcile", SideEffect::Writes, handle.patience, deleted)
                .await?;
        }
        Ok(())
    }

    async fn close(&self, handle: &Handle) -> Result<()> {
        if self.cluster.given().is_some() {
            // The session belongs to the user: only the nodes of Leasehold are deleted.
            let owned = self.list_owned(handle).await?.claims;
            self.delete_orphans(handle, owned).await?;
            let link = handle.link("close")?;
            handle.line.cut();
            let deleted = delete(&link.client, &handle.node);
            return self
                .cluster
                .ask("close", SideEffect::Writes, handle.patience, deleted)
                .await;
        }
        let Some(link) = handle.line.cut() else {
            return Ok(());
        };
        let mut state = link.client.state_watcher();
        // The driver closes a session when its last client goes.
        drop(link);
        let closed = async {
            while !state.changed().await.is_terminated() {}
            Ok(())
        };
        self.cluster
            .ask("close", SideEffect::None, handle.patience, closed)
            .await
    }
}

/// Returns when the leader heard of a session at the earliest, given a transaction that was sent at
/// `sent` and committed.
fn heard(liveness: Option<&Liveness>, sent: Timestamp) -> Timestamp {
    liveness.map_or(sent, |liveness| liveness.heard(sent))
}

/// Deletes a node that may be gone already.
async fn delete(client: &Client, path: &str) -> Result<(), Driver> {
    match client.delete(path, None).await {
        Err(Driver::NoNode) => Ok(()),
        deleted => deleted,
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.node)
    }
}

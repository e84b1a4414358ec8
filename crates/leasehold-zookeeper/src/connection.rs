//! [`Cluster`]: connections to the servers, and requests with a time-out.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::future::join;
use leasehold_core::{
    Credentials, ErrorKind, Result, Ttl, backend::support::DriverThread, text::Escaped,
};
use tokio::time::timeout;
use zookeeper_client::{Client, Connector, CreateMode, Error as Driver, Stat};

use crate::{
    config::{MAX_ROOT, ParsedUrl, ZookeeperConfig},
    diagnosis::{self, Speech},
    error::{self, ERRORS, SideEffect, unless_gone},
    keys::{Directory, Names},
    thread,
    used_up::UsedUp,
};

/// The TTL of the sessions of waiters, or the servers' shortest session time-out if that is longer.
///
/// The node of a dead waiter stays for this long, and a tick. It is longer than an election. A
/// waiter that is cut off for longer loses its position, not a lock. A lock with a shorter TTL is
/// waited for in a session of that TTL.
const WAITING_TTL: Duration = Duration::from_secs(5);
/// The most bytes of watched paths on one connection.
///
/// After a reconnection the driver sends the paths of all watches in requests of 128 KiB. If it
/// needs a second request, it takes the answer for a fault of the server, and reconnects again and
/// again until the session ends.
const WATCHED_BYTES: usize = 112 * 1024;
/// The pause before a second attempt to connect.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest session that the protocol can ask for.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

/// The scheme of users with a password.
const DIGEST: &str = "digest";

fn identity(credentials: &Credentials) -> String {
    format!(
        "{}:{}",
        credentials.username().unwrap_or_default(),
        credentials.password()
    )
}

/// The servers, and the connections to them.
pub(crate) struct Cluster {
    source: Source,
    pub(crate) config: ZookeeperConfig,
    pub(crate) names: Names,
    /// The locks whose sequence numbers are used up.
    pub(crate) used_up: UsedUp,
    /// The connection for requests of no session, such as an inspection. Opened when it is needed.
    shared: tokio::sync::Mutex<Option<Arc<Link>>>,
    /// Whether there may be a node by which the leader's clock is read.
    has_clock: AtomicBool,
}

enum Source {
    Url {
        connector: Box<Connector>,
        hosts: String,
        tls: bool,
        speech: Speech,
    },
    /// The user's own client. Its one session is neither opened nor closed by Leasehold.
    Client(Arc<Link>),
}

/// A client of the driver, and the bytes of paths that it watches.
pub(crate) struct Link {
    pub(crate) client: Client,
    /// The thread of the driver. It is dropped after the client, because the driver's task ends
    /// with the client.
    _thread: Option<DriverThread>,
    watched: AtomicUsize,
    /// The last credentials of a provider that it has authenticated with.
    credentials: Mutex<Option<Credentials>>,
}

impl Link {
    fn new(
        client: Client,
        thread: Option<DriverThread>,
        credentials: Option<Credentials>,
    ) -> Arc<Self> {
        let (watched, credentials) = (AtomicUsize::new(0), Mutex::new(credentials));
        Arc::new(Self {
            client,
            _thread: thread,
            watched,
            credentials,
        })
    }

    fn credentials(&self) -> std::sync::MutexGuard<'_, Option<Credentials>> {
        // Nothing panics while it is held.
        self.credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves room for a watch on this path until the returned value is dropped. Returns `None`
    /// if one more watch could cost the session.
    pub(crate) fn room(self: &Arc<Self>, path: &str) -> Option<Room> {
        let bytes = self.client.path().len() + path.len();
        let before = self.watched.fetch_add(bytes, Ordering::Relaxed);
        let room = Room {
            link: Arc::downgrade(self),
            bytes,
        };
        (before + bytes <= WATCHED_BYTES).then_some(room)
    }
}

/// The room for one watch. It does not keep the connection open.
pub(crate) struct Room {
    link: std::sync::Weak<Link>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(link) = self.link.upgrade() {
            link.watched.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Cluster {
    pub(crate) fn of_location(location: ParsedUrl) -> Arc<Self> {
        let ParsedUrl {
            hosts,
            connector,
            tls,
            speech,
            config,
        } = location;
        Self::new(
            Source::Url {
                connector: Box::new(connector),
                hosts,
                tls,
                speech,
            },
            config,
        )
    }

    pub(crate) fn of_connector(
        connector: Connector,
        hosts: &str,
        config: ZookeeperConfig,
    ) -> Arc<Self> {
        let (connector, hosts, speech) = (Box::new(connector), hosts.to_owned(), Speech::default());
        Self::new(
            Source::Url {
                connector,
                hosts,
                tls: false,
                speech,
            },
            config,
        )
    }

    pub(crate) fn of_client(client: Client, config: ZookeeperConfig) -> Arc<Self> {
        Self::new(Source::Client(Link::new(client, None, None)), config)
    }

    fn new(source: Source, config: ZookeeperConfig) -> Arc<Self> {
        let names = Names {
            root: Arc::clone(&config.root),
            exclusive: config.exclusive,
            election: config.election,
        };
        let (used_up, shared) = (UsedUp::default(), tokio::sync::Mutex::default());
        Arc::new(Self {
            source,
            config,
            names,
            used_up,
            shared,
            has_clock: AtomicBool::new(false),
        })
    }

    /// Returns the address of the servers, without secrets.
    pub(crate) fn endpoint(&self) -> String {
        match &self.source {
            Source::Url { hosts, tls, .. } => {
                let scheme = if *tls { "zookeepers" } else { "zookeeper" };
                format!("{scheme}://{}{}", Escaped(hosts), Escaped(&self.names.root))
            }
            Source::Client(link) => {
                let path = link.client.path().trim_end_matches('/');
                format!(
                    "the given client{}{}",
                    Escaped(path),
                    Escaped(&self.names.root)
                )
            }
        }
    }

    /// Returns the time-out of a request in a session of this TTL. It leaves time for a second
    /// request before the session ends.
    pub(crate) fn patience(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 4)
    }

    /// Returns the TTL of the sessions of waiters. A request may take half of it, so that the
    /// option `timeout` is not shortened.
    pub(crate) fn waiting_ttl(&self) -> Ttl {
        Ttl::new(WAITING_TTL.max(self.config.timeout.saturating_mul(2))).unwrap_or(Ttl::MAX)
    }

    /// Returns the time-out of a request in a session of waiters.
    pub(crate) fn patience_to_wait(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 2)
    }

    /// Returns the user's own client, if there is one.
    pub(crate) fn given(&self) -> Option<&Arc<Link>> {
        match &self.source {
            Source::Url { .. } => None,
            Source::Client(link) => Some(link),
        }
    }

    /// Opens a session with a time-out as near to `session` as the servers allow, or returns the
    /// user's own.
    pub(crate) async fn connect(
        &self,
        operation: &'static str,
        session: Duration,
    ) -> Result<Arc<Link>> {
        let (connector, hosts, tls, speech) = match &self.source {
            Source::Url {
                connector,
                hosts,
                tls,
                speech,
            } => (connector, hosts, *tls, speech),
            Source::Client(link) if link.client.state().is_terminated() => {
                let message = "the session of the given client is over; give another client";
                return Err(ERRORS.error(ErrorKind::Closed, operation, message));
            }
            Source::Client(link) => return Ok(Arc::clone(link)),
        };
        // The driver also uses this as the time-out of a server that does not answer.
        let silence = self.config.connect_timeout.min(session * 2 / 5);
        let mut connector = Connector::clone(connector)
            .with_session_timeout(session)
            .with_connection_timeout(silence)
            .with_fail_eagerly();
        let credentials = self.credentials(operation).await?;
        if let Some(credentials) = &credentials {
            connector = connector.with_auth(DIGEST, identity(credentials).as_bytes());
        }
        let hosts_tried = u32::try_from(hosts.split(',').count()).unwrap_or(u32::MAX);
        let patience = self.config.connect_timeout.saturating_mul(hosts_tried);
        let mut connected = self
            .connect_once(operation, patience, session, &connector, hosts, tls)
            .await;
        if connected
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Unavailable)
        {
            // A server that has just been started takes long for its first connections.
            tokio::time::sleep(PAUSE).await;
            connected = self
                .connect_once(operation, patience, session, &connector, hosts, tls)
                .await;
        }
        match connected {
            Ok((client, thread)) => Ok(Link::new(client, Some(thread), credentials)),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                let why = diagnosis::of(hosts, speech, self.config.connect_timeout).await;
                Err(error::unreachable(operation, &self.endpoint(), &why, error))
            }
            Err(error) => Err(error),
        }
    }

    async fn connect_once(
        &self,
        operation: &'static str,
        patience: Duration,
        session: Duration,
        connector: &Connector,
        hosts: &str,
        tls: bool,
    ) -> Result<(Client, DriverThread)> {
        let (connector, hosts) = (connector.clone(), hosts.to_owned());
        let count = hosts.split(',').count();
        let connecting = async move {
            #[cfg(feature = "tls")]
            if tls {
                return connector.secure_connect(&hosts).await;
            }
            let _ = tls;
            connector.connect(&hosts).await
        };
        let (thread, connected) =
            thread::connect(session, connecting).map_err(|error| ERRORS.named(error, operation))?;
        // Without an answer the thread has panicked.
        let connected = async { connected.await.unwrap_or(Err(Driver::ClientClosed)) };
        match timeout(patience, connected).await {
            Ok(Ok(client)) => Ok((client, thread)),
            Ok(Err(error)) => Err(error::from_driver(
                error,
                operation,
                SideEffect::None,
                &self.endpoint(),
            )),
            Err(_elapsed) => {
                let message = format!(
                    "cannot connect to {} within {patience:?} \
                     (the option `connect-timeout`, for each of {count} servers)",
                    self.endpoint()
                );
                Err(ERRORS.error(ErrorKind::Unavailable, operation, message))
            }
        }
    }

    /// Returns the current credentials, if there is a provider.
    async fn credentials(&self, operation: &'static str) -> Result<Option<Credentials>> {
        let Some(provider) = &self.config.credentials else {
            return Ok(None);
        };
        let supplied = timeout(self.config.connect_timeout, provider.credentials()).await;
        let slow = || {
            let message = format!(
                "the credentials provider did not answer within {:?} (the option `connect-timeout`)",
                self.config.connect_timeout
            );
            ERRORS.error(ErrorKind::Unavailable, operation, message)
        };
        let credentials = supplied
            .map_err(|_elapsed| slow())?
            .map_err(|error| ERRORS.named(error, operation))?;
        if credentials.username().is_none() {
            let message = "ZooKeeper's scheme `digest` needs a user name; the credentials provider supplied none";
            return Err(ERRORS.error(ErrorKind::InvalidInput, operation, message));
        }
        Ok(Some(credentials))
    }

    /// Authenticates again after a request that was denied, if the credentials have changed.
    /// Returns whether it did, so that the request should be sent once more.
    pub(crate) async fn is_cured<T>(
        &self,
        operation: &'static str,
        link: &Link,
        outcome: &Result<T>,
    ) -> bool {
        if outcome
            .as_ref()
            .err()
            .is_none_or(|error| error.kind() != ErrorKind::Denied)
        {
            return false;
        }
        match self.authenticate(operation, link).await {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(target: "leasehold", %error, "denied, and not authenticated again");
                false
            }
        }
    }

    async fn authenticate(&self, operation: &'static str, link: &Link) -> Result<bool> {
        let Some(credentials) = self.credentials(operation).await? else {
            return Ok(false);
        };
        if link.credentials().as_ref() == Some(&credentials) {
            return Ok(false);
        }
        let identity = identity(&credentials);
        // The driver repeats it with every connection of this session.
        let authenticated = link.client.auth(DIGEST, identity.as_bytes());
        self.ask(
            operation,
            SideEffect::None,
            self.config.timeout,
            authenticated,
        )
        .await?;
        *link.credentials() = Some(credentials);
        Ok(true)
    }

    /// Returns the connection for requests of no session.
    pub(crate) async fn shared(&self, operation: &'static str) -> Result<Arc<Link>> {
        let mut shared = self.shared.lock().await;
        if let Some(link) = &*shared
            && !link.client.state().is_terminated()
        {
            return Ok(Arc::clone(link));
        }
        let link = self.connect(operation, LONGEST).await?;
        *shared = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Returns the shortest and the longest session time-out that the servers grant, as far as they
    /// show it. Fails if no server answers.
    pub(crate) async fn limits(&self, shortest: Duration) -> Result<(Duration, Duration)> {
        if let Some(link) = self.given() {
            self.check_root(link)?;
            let read = link.client.check_stat("/");
            if self
                .ask("connect", SideEffect::None, self.config.timeout, read)
                .await?
                .is_none()
            {
                let message = format!(
                    "the given client's own root, {}, does not exist; create it",
                    link.client.path()
                );
                return Err(ERRORS.error(ErrorKind::InvalidInput, "connect", message));
            }
            self.probe(link).await?;
            let session = link.client.session_timeout();
            return Ok((session, session));
        }
        let (short, long) = futures_util::join!(
            self.connect("connect", shortest),
            self.connect("connect", LONGEST)
        );
        let long = long?;
        self.check_root(&long)?;
        self.probe(&long).await?;
        let longest = long.client.session_timeout();
        // On a slow machine a short session may end while it is opened. Its first use then fails.
        let shortest = short.map_or(shortest, |link| link.client.session_timeout());
        Ok((shortest.min(longest), longest))
    }

    fn check_root(&self, link: &Link) -> Result<()> {
        let length = link.client.path().len() + self.names.root.len();
        if length <= MAX_ROOT {
            return Ok(());
        }
        let message =
            format!("the root has {length} bytes, with the client's own; {MAX_ROOT} are possible");
        Err(ERRORS.error(ErrorKind::InvalidInput, "connect", message))
    }

    /// Checks that the server knows the request that reconciliation needs. A server before 3.6 does
    /// not, and losses would go unnoticed.
    async fn probe(&self, link: &Link) -> Result<()> {
        let listed = link.client.list_ephemerals(self.names.ephemerals());
        self.ask("connect", SideEffect::None, self.config.timeout, listed)
            .await
            .map(drop)
    }

    /// Returns the time by the wall clock of the leader.
    ///
    /// The servers have no request for it. They show it in the time at which a node was modified,
    /// so the connection has an ephemeral node of its own and modifies it.
    pub(crate) async fn leader_time(&self, link: &Link) -> Result<SystemTime, Driver> {
        let path = self.names.clock(link.client.session_id().0);
        let stat = loop {
            match link.client.set_data(&path, b"", None).await {
                Err(Driver::NoNode) => {}
                set => break set?,
            }
            self.has_clock.store(true, Ordering::Relaxed);
            let ephemeral = CreateMode::Ephemeral.with_acls(self.config.access.acls());
            match link.client.create(&path, b"", &ephemeral).await {
                Ok((stat, _)) => break stat,
                Err(Driver::NoNode) => self.make(link, &self.names.sessions()).await?,
                // Another task has created it.
                Err(Driver::NodeExists) => {}
                Err(error) => return Err(error),
            }
        };
        Ok(time_of(stat.mtime))
    }

    /// Closes the shared connection.
    pub(crate) async fn close(&self) {
        *self.shared.lock().await = None;
        // The session of the user's own client continues.
        if let Some(link) = self.given()
            && self.has_clock.swap(false, Ordering::Relaxed)
        {
            let path = self.names.clock(link.client.session_id().0);
            let deleted = link.client.delete(&path, None);
            drop(timeout(self.config.timeout, deleted).await);
        }
    }

    /// Waits for the answer to a request, and converts its error.
    pub(crate) async fn ask<T>(
        &self,
        operation: &'static str,
        effect: SideEffect,
        patience: Duration,
        request: impl Future<Output = Result<T, Driver>>,
    ) -> Result<T> {
        match timeout(patience, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error::from_driver(
                error,
                operation,
                effect,
                &self.endpoint(),
            )),
            Err(_elapsed) => Err(error::timed_out(
                operation,
                effect,
                &self.endpoint(),
                patience,
                self.config.timeout,
            )),
        }
    }

    /// Sends a request that the leader itself answers and that changes nothing.
    pub(crate) async fn ask_leader(
        &self,
        operation: &'static str,
        link: &Link,
        patience: Duration,
        path: &str,
    ) -> Result<()> {
        self.ask(
            operation,
            SideEffect::None,
            patience,
            link.client.sync(path),
        )
        .await
    }

    /// Lists the children of a lock's directory. There are none if the directory does not exist.
    pub(crate) async fn list(
        &self,
        operation: &'static str,
        link: &Link,
        patience: Duration,
        directory: &Directory,
    ) -> Result<Vec<String>> {
        let listing = async {
            match link.client.list_children(directory.path()).await {
                Err(Driver::NoNode) => Ok(Vec::new()),
                listed => listed,
            }
        };
        self.ask(operation, SideEffect::None, patience, listing)
            .await
    }

    /// Reads the data of a node. Returns `None` if the node does not exist.
    ///
    /// The answer is not older than the call, unless the leader was deposed. An earlier write of
    /// this session that is in flight precedes the read on the same connection. On an older
    /// connection it is refused from now on, because the session has moved.
    pub(crate) async fn read(
        &self,
        operation: &'static str,
        link: &Link,
        patience: Duration,
        path: &str,
    ) -> Result<Option<(Vec<u8>, Stat)>> {
        let reading = async {
            let (sync, read) = (link.client.sync(path), link.client.get_data(path));
            let (synced, read) = join(sync, read).await;
            unless_gone(synced)?;
            unless_gone(read)
        };
        self.ask(operation, SideEffect::None, patience, reading)
            .await
    }

    /// Deletes a lock's directory whose numbers were used up by the transaction `since`. The next
    /// directory starts at 0. Returns whether it is gone: a directory with children stays.
    pub(crate) async fn renumber(
        &self,
        link: &Link,
        patience: Duration,
        directory: &Directory,
        since: i64,
    ) -> Result<bool> {
        let deleted = async {
            match link.client.check_stat(directory.path()).await? {
                Some(stat) if stat.czxid < since => {}
                // Another client has deleted it.
                _ => return Ok(true),
            }
            match link.client.delete(directory.path(), None).await {
                Ok(()) | Err(Driver::NoNode) => Ok(true),
                Err(Driver::NotEmpty) => Ok(false),
                Err(error) => Err(error),
            }
        };
        // A lost answer is harmless: a directory is created again whenever it is missing.
        let deleted = self
            .ask("acquire", SideEffect::None, patience, deleted)
            .await;
        deleted.map_err(|error| match error.kind() {
            ErrorKind::Denied => error::used_up(directory.path(), &error),
            _ => error,
        })
    }

    /// Creates a directory and its parents. It is a container: the servers remove it once it has
    /// been empty for a while.
    pub(crate) async fn make(&self, link: &Link, directory: &Directory) -> Result<(), Driver> {
        let client = &link.client;
        let acls = self.config.access.acls();
        let container = CreateMode::Container.with_acls(acls);
        let made = match client.create(directory.path(), b"", &container).await {
            Err(Driver::NoNode) if !self.names.root.is_empty() => {
                client
                    .mkdir(&self.names.root, &CreateMode::Persistent.with_acls(acls))
                    .await?;
                client.create(directory.path(), b"", &container).await
            }
            made => made,
        };
        match made {
            Ok(_) | Err(Driver::NodeExists) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Returns the time of a [`Stat`](zookeeper_client::Stat), which is in milliseconds since 1970.
pub(crate) fn time_of(millis: i64) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
    SystemTime::UNIX_EPOCH + since
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("endpoint", &self.endpoint())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

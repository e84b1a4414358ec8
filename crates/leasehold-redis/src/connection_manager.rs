//! [`ConnectionManager`]: opens the one multiplexed connection, and replaces it when it fails.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::Shared};
use leasehold_core::{
    Credentials, CredentialsProvider, Error, ErrorKind, Result,
    backend::{
        BoxFuture,
        support::{BatchLimits, Batcher, contained},
    },
};
use redis::{AsyncConnectionConfig, Client, Cmd, PushInfo, PushKind, RedisError, Value};

use crate::{
    config::{NotificationMode, RedisConfig},
    connection::Connection,
    error::{self, ERRORS, SideEffect},
    handshake,
    scripts::Script,
    stream::{self, Meter},
    waiters::{NotificationBackoff, WaiterRegistry},
};

/// The limits of batches.
///
/// Measured with an earlier batcher of this crate: with up to 4 operations in flight alone, the
/// rate was 0.96, 1.5 and 1.24 of the bare driver's at 16, 64 and 256 tasks; with up to 16 alone,
/// it was 0.90 at 16 tasks. With one pipeline at a time, the server would be idle while the client
/// reads.
const LIMITS: BatchLimits = BatchLimits {
    alone: 4,
    calls: 2,
    undivided: 1,
    batch: 128,
};

/// The limits of batches for a node of a quorum, where a call costs more than most of its jobs.
///
/// Measured with five servers on two processors: 8 locks together take 1.8 to 1.95 times as long
/// as one, and three times as long with each job sent alone. 64 tasks acquire twice as many locks
/// of their own per second. A single task takes 5 to 10 % longer. Four calls at a time, so that few
/// tasks do not wait for each other's round trips.
const NODE_LIMITS: BatchLimits = BatchLimits {
    alone: 0,
    calls: 4,
    undivided: 32,
    batch: 128,
};

/// The driver's queue of commands that are not yet written. Never full, so that a command is
/// queued, in order, by the first poll of its future: releases are ordered by that.
const QUEUE: usize = 1 << 20;

/// The connection to one server, which is opened, checked and replaced here.
pub(crate) struct ConnectionManager {
    client: Client,
    pub(crate) config: RedisConfig,
    pub(crate) endpoint: String,
    /// Whether the server is a node of a quorum.
    pub(crate) is_node: bool,
    pub(crate) waiters: Arc<WaiterRegistry>,
    pub(crate) notification_backoff: NotificationBackoff,
    pub(crate) batcher: Arc<Batcher<Self>>,
    state: Mutex<State>,
    generations: AtomicU64,
    /// The run of the server that was connected to last, and how many there were.
    run: Mutex<String>,
    runs: AtomicU64,
    /// The error of the last attempt to connect, if it failed.
    trouble: Mutex<Option<Error>>,
    /// Lost connections that the server may still serve. A command that is still on its way must
    /// not take effect after it was undone.
    stale: Mutex<Vec<StaleConnection>>,
    this: Weak<Self>,
}

enum State {
    Down,
    Connecting(Shared<BoxFuture<'static, Result<Arc<Connection>>>>),
    Connection(Arc<Connection>),
    Closed,
}

/// A lost connection that the server may still serve.
struct StaleConnection {
    id: i64,
    /// The run of the server in which the id is valid.
    run: String,
}

impl ConnectionManager {
    pub(crate) fn new(
        client: Client,
        config: RedisConfig,
        endpoint: String,
        is_node: bool,
    ) -> Arc<Self> {
        let limits = if is_node { NODE_LIMITS } else { LIMITS };
        Arc::new_cyclic(|this| Self {
            client,
            config,
            endpoint,
            is_node,
            waiters: Arc::new(WaiterRegistry::new()),
            notification_backoff: NotificationBackoff::default(),
            batcher: Arc::new(Batcher::new(limits)),
            state: Mutex::new(State::Down),
            generations: AtomicU64::new(0),
            run: Mutex::default(),
            runs: AtomicU64::new(0),
            trouble: Mutex::default(),
            stale: Mutex::default(),
            this: Weak::clone(this),
        })
    }

    /// Runs a script that may be run twice. The first poll puts it into the
    /// connection's queue, if there is a connection. If the connection breaks before the answer
    /// comes, the script is run once more on a new one.
    pub(crate) async fn run(
        &self,
        script: &Script,
        operation: &'static str,
        effect: SideEffect,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let conn = self.connection_flushed(operation).await?;
        match self
            .run_on(&conn, script, operation, effect, &arguments)
            .await
        {
            Err(broken) if error::is_broken_connection(&broken) => {
                // The error of the second attempt says nothing about the first.
                let Ok(conn) = Box::pin(self.connection()).await else {
                    return Err(broken);
                };
                self.run_on(&conn, script, operation, effect, arguments)
                    .await
            }
            answer => answer,
        }
    }

    /// Runs a script on this connection, once.
    pub(crate) async fn run_on(
        &self,
        conn: &Connection,
        script: &Script,
        operation: &'static str,
        effect: SideEffect,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        conn.run(script, arguments)
            .await
            .map_err(|error| self.map_error(conn, error, operation, effect))
    }

    /// Maps an error. Gives the connection up if it broke, does not answer, must authenticate
    /// again, or leads to a server that has become a replica. After a fail-over the address leads
    /// to the new primary, but the old connection does not.
    pub(crate) fn map_error(
        &self,
        conn: &Connection,
        error: RedisError,
        operation: &'static str,
        effect: SideEffect,
    ) -> Error {
        let unauthenticated = error::asks_for_credentials(&error);
        if error.is_io_error()
            || error.is_unrecoverable_error()
            || error::is_of_replica(&error)
            || unauthenticated
        {
            self.lose(conn.generation);
        }
        let error = match error.is_timeout() {
            true => error::silent(error, operation, effect, self.config.timeout),
            false => error::from_command(error, operation, effect),
        };
        // The next connection requests new credentials.
        if unauthenticated && self.config.credentials.is_some() {
            return error::outdated(error, operation);
        }
        error
    }

    /// Returns the connection after all pending batches were sent, so that they come first.
    pub(crate) async fn connection_flushed(
        &self,
        operation: &'static str,
    ) -> Result<Arc<Connection>> {
        let conn = match self.current_connection() {
            Some(conn) => conn,
            None => Box::pin(self.connection())
                .await
                .map_err(|error| error.with_operation(operation))?,
        };
        self.flush();
        Ok(conn)
    }

    /// Sends all pending batches, so that they come before what is sent next.
    pub(crate) fn flush(&self) {
        if let Some(this) = self.this.upgrade() {
            self.batcher.flush(&this);
        }
    }

    /// Returns the connection, if it is open.
    pub(crate) fn current_connection(&self) -> Option<Arc<Connection>> {
        let conn = match &*self.state() {
            State::Connection(conn) => Arc::clone(conn),
            _ => return None,
        };
        if conn.is_over() {
            self.lose(conn.generation);
            return None;
        }
        Some(conn)
    }

    /// Returns the number of runs of the server so far. While it does not change, the server has
    /// lost no data.
    pub(crate) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Acquire)
    }

    /// Returns the error of an operation for which no new connection is opened. It contains the
    /// error of the last attempt to connect.
    pub(crate) fn no_connection(&self, operation: &'static str) -> Error {
        let trouble = self
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let why = trouble
            .as_ref()
            .map_or("there is no connection", Error::message)
            .to_owned();
        ERRORS.error(ErrorKind::Unavailable, operation, why)
    }

    /// Returns the connection. If there is none, all callers share one attempt to connect.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>> {
        if let Some(conn) = self.current_connection() {
            return Ok(conn);
        }
        let connecting = {
            let mut state = self.state();
            match &*state {
                State::Connection(conn) => return Ok(Arc::clone(conn)),
                State::Closed => {
                    return Err(ERRORS.error(
                        ErrorKind::Closed,
                        "connect",
                        "the backend was closed",
                    ));
                }
                State::Connecting(connecting) => connecting.clone(),
                State::Down => {
                    let Some(this) = self.this.upgrade() else {
                        return Err(ERRORS.error(
                            ErrorKind::Closed,
                            "connect",
                            "the backend was dropped",
                        ));
                    };
                    // A panic becomes an error of all callers.
                    let connecting = contained(async move { this.connect().await })
                        .boxed()
                        .shared();
                    // Spawned, so that it completes although its callers may be dropped.
                    drop(tokio::spawn(connecting.clone()));
                    *state = State::Connecting(connecting.clone());
                    connecting
                }
            }
        };
        connecting.await
    }

    async fn connect(self: Arc<Self>) -> Result<Arc<Connection>> {
        let opened = contained(async {
            let conn = self.open().await?;
            self.kill_stale(&conn).await;
            Ok(conn)
        });
        let opened = opened.await;
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
            opened.as_ref().err().cloned();
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            return Err(ERRORS.error(ErrorKind::Closed, "connect", "the backend was closed"));
        }
        match opened {
            Ok(conn) => {
                let run = &mut *self.run.lock().unwrap_or_else(PoisonError::into_inner);
                if run != conn.run_id() {
                    conn.run_id().clone_into(run);
                    self.runs.fetch_add(1, Ordering::AcqRel);
                }
                *state = State::Connection(Arc::clone(&conn));
                drop(state);
                // A registration at an earlier connection is not valid for this one.
                self.waiters.notify_all();
                tracing::debug!(endpoint = %self.endpoint, id = conn.id, pushes = conn.pushes, "connected");
                Ok(conn)
            }
            Err(error) => {
                *state = State::Down;
                Err(error)
            }
        }
    }

    async fn open(self: &Arc<Self>) -> Result<Arc<Connection>> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let Some(provider) = &self.config.credentials else {
            return self
                .open_as(&self.client, generation, self.config.connect_timeout)
                .await;
        };
        let mut refused: Option<(Credentials, Error)> = None;
        loop {
            let begun = Instant::now();
            let credentials = self.ask(&**provider).await?;
            if let Some((_, error)) = refused.take_if(|(before, _)| *before == credentials) {
                return Err(if generation == 0 {
                    error
                } else {
                    error::outdated(error, "connect")
                });
            }
            let client = handshake::with_credentials(&self.client, &credentials)?;
            let patience = self.config.connect_timeout.saturating_sub(begun.elapsed());
            match self.open_as(&client, generation, patience).await {
                // The credentials may have changed between the request and their use.
                Err(error) if error::is_unauthenticated(&error) && refused.is_none() => {
                    refused = Some((credentials, error));
                }
                Err(error) if error::is_unauthenticated(&error) && generation > 0 => {
                    return Err(error::outdated(error, "connect"));
                }
                opened => return opened,
            }
        }
    }

    /// Requests credentials. A provider that panics or does not answer counts as unavailable.
    async fn ask(&self, provider: &dyn CredentialsProvider) -> Result<Credentials> {
        let unavailable = |why: &'static str| ERRORS.error(ErrorKind::Unavailable, "connect", why);
        let asked = AssertUnwindSafe(provider.credentials()).catch_unwind();
        match tokio::time::timeout(self.config.connect_timeout, asked).await {
            Ok(Ok(credentials)) => credentials.map_err(|error| ERRORS.named(error, "connect")),
            Ok(Err(_panic)) => Err(unavailable("the provider of the credentials panicked")),
            Err(_elapsed) => Err(unavailable(
                "the provider of the credentials did not answer within the connect time-out",
            )),
        }
    }

    async fn open_as(
        self: &Arc<Self>,
        client: &Client,
        generation: u64,
        patience: Duration,
    ) -> Result<Arc<Connection>> {
        let meter = Arc::<Meter>::default();
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let pushing = match self.config.notifications {
            NotificationMode::Pushed => {
                let settings = settings
                    .clone()
                    .set_push_sender(self.push_sender(generation, &meter));
                match stream::connect(client, settings, &meter, patience).await {
                    Ok(connection) => Some(connection),
                    Err(error) if handshake::lacks_resp3(&error) => {
                        tracing::warn!(endpoint = %self.endpoint, "no RESP3 here: waiters poll");
                        None
                    }
                    Err(error) => return Err(self.cannot_connect(client, error).await),
                }
            }
            NotificationMode::Polled => None,
        };
        let (connection, can_push) = match pushing {
            Some(connection) => (connection, true),
            None => {
                let client = handshake::with_resp2(client)?;
                match stream::connect(&client, settings, &meter, patience).await {
                    Ok(connection) => (connection, false),
                    Err(error) => return Err(self.cannot_connect(&client, error).await),
                }
            }
        };
        let mut probed = connection.0.clone();
        // Only the handshake uses the driver's time-out. Afterwards `Connection` has its own.
        probed.set_response_timeout(self.config.timeout);
        let found = handshake::check(
            probed,
            can_push,
            generation == 0,
            &self.endpoint,
            &self.config,
        )
        .await?;
        Ok(Arc::new(Connection::new(
            connection,
            meter,
            generation,
            found,
            self.config.timeout,
        )))
    }

    async fn cannot_connect(&self, client: &Client, error: RedisError) -> Error {
        let closed = error.is_connection_dropped() && !error.is_connection_refusal();
        let told = if closed {
            handshake::connection_refusal(client).await
        } else {
            None
        };
        error::from_connect(
            told.unwrap_or(error),
            &self.endpoint,
            ("connect-timeout", self.config.connect_timeout),
        )
    }

    fn push_sender(
        &self,
        generation: u64,
        meter: &Arc<Meter>,
    ) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
        let waiters = Arc::clone(&self.waiters);
        let manager = Weak::clone(&self.this);
        let meter = Arc::clone(meter);
        move |push: PushInfo| {
            meter.reset();
            match push.kind {
                PushKind::Invalidate => match push.data.as_slice() {
                    [Value::Array(keys)] => {
                        for key in keys {
                            if let Value::BulkString(key) = key {
                                waiters.notify(key);
                            }
                        }
                    }
                    // A null key: the whole database was flushed or replaced.
                    _ => {
                        if let Some(conn) = manager
                            .upgrade()
                            .and_then(|manager| manager.current_connection())
                        {
                            conn.clear_all_seeded();
                        }
                        waiters.notify_all();
                    }
                },
                PushKind::Disconnection => {
                    if let Some(manager) = manager.upgrade() {
                        manager.lose(generation);
                    }
                }
                _ => {}
            }
            Ok(())
        }
    }

    /// Gives the connection up. The next operation opens another one.
    fn lose(&self, generation: u64) {
        let lost = {
            let mut state = self.state();
            match &*state {
                State::Connection(conn) if conn.generation == generation => {
                    let lost = Arc::clone(conn);
                    *state = State::Down;
                    lost
                }
                _ => return,
            }
        };
        if let Some(id) = lost.id.filter(|_| !lost.run_id().is_empty()) {
            let stale = StaleConnection {
                id,
                run: lost.run_id().to_owned(),
            };
            self.stale_connections().push(stale);
        }
        // No notification can arrive on it any more.
        self.waiters.notify_all();
        tracing::warn!(endpoint = %self.endpoint, id = lost.id, "the connection is lost");
    }

    /// Ends lost connections at the server, as far as the user has the right.
    async fn kill_stale(&self, conn: &Connection) {
        let mut all = std::mem::take(&mut *self.stale_connections());
        all.retain(|stale| stale.run == conn.run_id());
        while let Some(stale) = all.pop() {
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("ID").arg(stale.id);
            let Err(error) = conn.send(&kill).await else {
                continue;
            };
            // Usually the connection has ended already.
            tracing::trace!(endpoint = %self.endpoint, id = stale.id, %error, "could not end the lost connection");
            if error.is_io_error() {
                // This connection is lost as well. The next one ends all of them.
                all.push(stale);
                self.stale_connections().append(&mut all);
                return;
            }
        }
    }

    fn stale_connections(&self) -> MutexGuard<'_, Vec<StaleConnection>> {
        // No code panics while it holds the lock.
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection. No other is opened.
    pub(crate) fn close(&self) {
        *self.state() = State::Closed;
        self.waiters.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionManager")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

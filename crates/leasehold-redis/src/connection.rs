//! The one multiplexed connection: opened, checked, watched, replaced.

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
    backend::{BoxFuture, support::contained},
    session::Batcher,
};
use redis::{AsyncConnectionConfig, Client, Cmd, PushInfo, PushKind, RedisError, Value};

use crate::{
    batcher,
    config::{NotificationMode, RedisConfig},
    conn::Conn,
    error::{self, Effect},
    handshake,
    notification_backoff::NotificationBackoff,
    scripts::Script,
    stream::{self, Meter},
    waiters::WaiterRegistry,
};

/// The driver's queue of commands that are not yet written. Never full, so that a command is
/// queued, in order, by the first poll of its future: releases are ordered by that.
const QUEUE: usize = 1 << 20;

/// The way to the server.
pub(crate) struct Link {
    client: Client,
    pub(crate) config: RedisConfig,
    pub(crate) endpoint: String,
    pub(crate) registry: Arc<WaiterRegistry>,
    pub(crate) notification_backoff: NotificationBackoff,
    pub(crate) gather: Arc<Batcher<Self>>,
    state: Mutex<State>,
    generations: AtomicU64,
    /// The run of the server that was connected to last, and how many there were.
    run: Mutex<String>,
    runs: AtomicU64,
    /// Why the last attempt to connect failed, if it did.
    trouble: Mutex<Option<Error>>,
    /// Connections that are lost to us, but perhaps not to the server: a command that is still on
    /// its way on one must not take effect after it was undone.
    doomed: Mutex<Vec<Doomed>>,
    this: Weak<Self>,
}

enum State {
    Down,
    Connecting(Shared<BoxFuture<'static, Result<Arc<Conn>>>>),
    Conn(Arc<Conn>),
    Closed,
}

/// A lost connection, as the server knows it.
struct Doomed {
    id: i64,
    /// Ids are good for one run of the server.
    run: String,
}

impl Link {
    pub(crate) fn new(client: Client, config: RedisConfig, endpoint: String) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            client,
            config,
            endpoint,
            registry: Arc::new(WaiterRegistry::new()),
            notification_backoff: NotificationBackoff::default(),
            gather: Arc::new(Batcher::new(batcher::LIMITS)),
            state: Mutex::new(State::Down),
            generations: AtomicU64::new(0),
            run: Mutex::default(),
            runs: AtomicU64::new(0),
            trouble: Mutex::default(),
            doomed: Mutex::default(),
            this: Weak::clone(this),
        })
    }

    /// Runs a script that does no harm when it is run twice. The first poll puts it into the
    /// connection's queue, if there is a connection. If the connection breaks before the answer
    /// comes, the script is run once more on a new one.
    pub(crate) async fn run(
        &self,
        script: &Script,
        operation: &'static str,
        effect: Effect,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let live = self.live_in_order(operation).await?;
        match self
            .run_on(&live, script, operation, effect, &arguments)
            .await
        {
            Err(broken) if error::broke(&broken) => {
                // What the second failed with says nothing about the first.
                let Ok(live) = Box::pin(self.live()).await else {
                    return Err(broken);
                };
                self.run_on(&live, script, operation, effect, arguments)
                    .await
            }
            answer => answer,
        }
    }

    /// As [`run`](Self::run), on this connection.
    pub(crate) async fn run_on(
        &self,
        live: &Conn,
        script: &Script,
        operation: &'static str,
        effect: Effect,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        live.run(script, arguments)
            .await
            .map_err(|error| self.failed(live, error, operation, effect))
    }

    /// Maps the error, and gives the connection up if it must be: one that broke or does not
    /// answer, that must authenticate again, or whose server is a replica by now. After a fail-over
    /// the same address leads to the new primary, and the old connection never does.
    pub(crate) fn failed(
        &self,
        live: &Conn,
        error: RedisError,
        operation: &'static str,
        effect: Effect,
    ) -> Error {
        let unauthenticated = error::asks_for_credentials(&error);
        if error.is_io_error()
            || error.is_unrecoverable_error()
            || error::is_of_replica(&error)
            || unauthenticated
        {
            self.lose(live.generation);
        }
        let error = match error.is_timeout() {
            true => error::silent(error, operation, effect, self.config.timeout),
            false => error::of_command(error, operation, effect),
        };
        // The next connection asks for new ones.
        if unauthenticated && self.config.credentials.is_some() {
            return error::outdated(error, operation);
        }
        error
    }

    /// The connection, with all gathered operations sent before whatever comes next.
    pub(crate) async fn live_in_order(&self, operation: &'static str) -> Result<Arc<Conn>> {
        let live = match self.live_now() {
            Some(live) => live,
            None => Box::pin(self.live())
                .await
                .map_err(|error| error.with_operation(operation))?,
        };
        if let Some(this) = self.this.upgrade() {
            self.gather.flush(&this);
        }
        Ok(live)
    }

    /// The connection, if there is one. One that was closed meanwhile is none: what would be sent
    /// on it never arrives.
    pub(crate) fn live_now(&self) -> Option<Arc<Conn>> {
        let live = match &*self.state() {
            State::Conn(live) => Arc::clone(live),
            _ => return None,
        };
        if live.is_over() {
            self.lose(live.generation);
            return None;
        }
        Some(live)
    }

    /// How many runs of the server, or servers, there were. As long as it stays the same the server
    /// has forgotten nothing.
    pub(crate) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Acquire)
    }

    /// The error of an operation that is not worth a new connection. It says why there is none, as
    /// far as that is known.
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
        error::plain(ErrorKind::Unavailable, operation, why)
    }

    /// The connection. If there is none, all who ask share one attempt.
    pub(crate) async fn live(&self) -> Result<Arc<Conn>> {
        if let Some(live) = self.live_now() {
            return Ok(live);
        }
        let connecting = {
            let mut state = self.state();
            match &*state {
                State::Conn(live) => return Ok(Arc::clone(live)),
                State::Closed => {
                    return Err(error::plain(
                        ErrorKind::Closed,
                        "connect",
                        "the backend was closed",
                    ));
                }
                State::Connecting(connecting) => connecting.clone(),
                State::Down => {
                    let Some(this) = self.this.upgrade() else {
                        return Err(error::plain(
                            ErrorKind::Closed,
                            "connect",
                            "the backend was dropped",
                        ));
                    };
                    // A panic is told to all who ask, too.
                    let connecting = contained(async move { this.connect().await })
                        .boxed()
                        .shared();
                    // Spawned, so that it ends also if nobody goes on asking.
                    drop(tokio::spawn(connecting.clone()));
                    *state = State::Connecting(connecting.clone());
                    connecting
                }
            }
        };
        connecting.await
    }

    async fn connect(self: Arc<Self>) -> Result<Arc<Conn>> {
        let opened = contained(async {
            let live = self.open().await?;
            self.end_doomed(&live).await;
            Ok(live)
        });
        let opened = opened.await;
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
            opened.as_ref().err().cloned();
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            return Err(error::plain(
                ErrorKind::Closed,
                "connect",
                "the backend was closed",
            ));
        }
        match opened {
            Ok(live) => {
                let run = &mut *self.run.lock().unwrap_or_else(PoisonError::into_inner);
                if run != live.run_id() {
                    live.run_id().clone_into(run);
                    self.runs.fetch_add(1, Ordering::AcqRel);
                }
                *state = State::Conn(Arc::clone(&live));
                drop(state);
                // Whoever was armed on an earlier connection is not armed on this one.
                self.registry.wake_all();
                tracing::debug!(endpoint = %self.endpoint, id = live.id, pushes = live.pushes, "connected");
                Ok(live)
            }
            Err(error) => {
                *state = State::Down;
                Err(error)
            }
        }
    }

    async fn open(self: &Arc<Self>) -> Result<Arc<Conn>> {
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
                // They may have changed between the question and their use.
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

    /// Asks for credentials. A provider that panics or does not answer is one that cannot be
    /// reached.
    async fn ask(&self, provider: &dyn CredentialsProvider) -> Result<Credentials> {
        let unavailable = |why: &str| error::plain(ErrorKind::Unavailable, "connect", why);
        let asked = AssertUnwindSafe(provider.credentials()).catch_unwind();
        match tokio::time::timeout(self.config.connect_timeout, asked).await {
            Ok(Ok(credentials)) => credentials
                .map_err(|error| error.with_backend(error::BACKEND).with_operation("connect")),
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
    ) -> Result<Arc<Conn>> {
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
        // The only time that the driver's own time-out is used: afterwards `Conn` has one.
        probed.set_response_timeout(self.config.timeout);
        let found = handshake::check(probed, can_push, generation == 0, self).await?;
        Ok(Arc::new(Conn::new(
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
            handshake::farewell(client).await
        } else {
            None
        };
        error::of_connect(
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
        let registry = Arc::clone(&self.registry);
        let link = Weak::clone(&self.this);
        let meter = Arc::clone(meter);
        move |push: PushInfo| {
            meter.reset();
            match push.kind {
                PushKind::Invalidate => match push.data.as_slice() {
                    [Value::Array(keys)] => {
                        for key in keys {
                            if let Value::BulkString(key) = key {
                                registry.wake(key);
                            }
                        }
                    }
                    // A null key: the whole database was flushed, or replaced by that of another
                    // server.
                    _ => {
                        if let Some(live) = link.upgrade().and_then(|link| link.live_now()) {
                            live.cool_all();
                        }
                        registry.wake_all();
                    }
                },
                PushKind::Disconnection => {
                    if let Some(link) = link.upgrade() {
                        link.lose(generation);
                    }
                }
                _ => {}
            }
            Ok(())
        }
    }

    /// The connection does not answer, or broke. The next operation opens another.
    fn lose(&self, generation: u64) {
        let lost = {
            let mut state = self.state();
            match &*state {
                State::Conn(live) if live.generation == generation => {
                    let lost = Arc::clone(live);
                    *state = State::Down;
                    lost
                }
                _ => return,
            }
        };
        if let Some(id) = lost.id.filter(|_| !lost.run_id().is_empty()) {
            let doomed = Doomed {
                id,
                run: lost.run_id().to_owned(),
            };
            self.lost_before().push(doomed);
        }
        // Nothing can wake on it any more.
        self.registry.wake_all();
        tracing::warn!(endpoint = %self.endpoint, id = lost.id, "the connection is lost");
    }

    /// Ends lost connections at the server, as far as it lets us.
    async fn end_doomed(&self, live: &Conn) {
        let mut all = std::mem::take(&mut *self.lost_before());
        all.retain(|doomed| doomed.run == live.run_id());
        while let Some(doomed) = all.pop() {
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("ID").arg(doomed.id);
            let Err(error) = live.send(&kill).await else {
                continue;
            };
            // Usually there is nothing left to end.
            tracing::trace!(endpoint = %self.endpoint, id = doomed.id, %error, "could not end the lost connection");
            if error.is_io_error() {
                // This one is lost, too. The next one ends them all.
                all.push(doomed);
                self.lost_before().append(&mut all);
                return;
            }
        }
    }

    fn lost_before(&self) -> MutexGuard<'_, Vec<Doomed>> {
        // Nothing panics while it is held.
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection. There will be no other.
    pub(crate) fn close(&self) {
        *self.state() = State::Closed;
        self.registry.wake_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

//! The one multiplexed connection: opened, checked, watched, replaced.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::Shared};
use leasehold_core::{BoxFuture, Elapsed, Error, ErrorKind, Patience, Result};
use redis::{
    AsyncConnectionConfig, Client, Cmd, Pipeline, PushInfo, PushKind, RedisError, Value, aio::MultiplexedConnection,
};
use tokio::task::unconstrained;

use crate::{
    config::{RedisConfig, WakeMode},
    error::{self, Effect},
    gather::Gather,
    keys::{self, Slot},
    probe,
    scripts::Script,
    sight::Sight,
    wake::Registry,
};

/// The driver's queue of commands that are not yet written. Never full, so that a command is queued, in order, by the
/// first poll of its future: releases are ordered by that.
const QUEUE: usize = 1 << 20;

/// The way to the server.
pub(crate) struct Link {
    client: Client,
    pub(crate) config: RedisConfig,
    pub(crate) endpoint: String,
    pub(crate) registry: Arc<Registry>,
    pub(crate) gather: Gather,
    state: Mutex<State>,
    generations: AtomicU64,
    /// Connections that are lost to us, but perhaps not to the server: a command that is still on its way on one must not
    /// take effect after it was undone.
    doomed: Mutex<Vec<Doomed>>,
    time_outs: Arc<Patience>,
    this: Weak<Self>,
}

enum State {
    Down,
    Connecting(Shared<BoxFuture<'static, Result<Arc<Live>>>>),
    Live(Arc<Live>),
    Closed,
}

/// A lost connection, as the server knows it.
struct Doomed {
    id: i64,
    /// Ids are good for one run of the server.
    run: String,
}

/// A connection that works, as far as we know.
pub(crate) struct Live {
    connection: MultiplexedConnection,
    /// For how long an answer is awaited, and what does it: the driver's own time-outs are timers of the runtime.
    response_timeout: Duration,
    time_outs: Arc<Patience>,
    generation: u64,
    id: Option<i64>,
    run: String,
    /// Whether the server pushes invalidations on it.
    pub(crate) pushes: bool,
    /// What is known of its memory, once a quorum has asked.
    sight: Mutex<Option<Arc<Sight>>>,
    warmth: Warmth,
    /// A script for many keys was refused.
    one_at_a_time: AtomicBool,
}

/// Whose token counters this connection has raised above the server's clock: for each slot the hour in which it did, or 0.
struct Warmth {
    opened: Instant,
    hours: Box<[AtomicU8]>,
}

/// A pipeline that is in the connection's queue and whose answers are awaited.
pub(crate) type Sent = Pin<Box<dyn Future<Output = Result<Vec<Value>, RedisError>> + Send>>;

impl Link {
    pub(crate) fn new(client: Client, config: RedisConfig, endpoint: String) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            client,
            config,
            endpoint,
            registry: Arc::new(Registry::new()),
            gather: Gather::default(),
            state: Mutex::new(State::Down),
            generations: AtomicU64::new(0),
            doomed: Mutex::default(),
            time_outs: Arc::default(),
            this: Weak::clone(this),
        })
    }

    /// Runs a script. The first poll puts it into the connection's queue, if there is a connection.
    pub(crate) async fn run(
        &self,
        script: &Script,
        operation: &'static str,
        effect: Effect,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let live = self.live_in_order(operation).await?;
        self.run_on(&live, script, operation, effect, arguments).await
    }

    /// As [`run`](Self::run), on this connection.
    pub(crate) async fn run_on(
        &self,
        live: &Live,
        script: &Script,
        operation: &'static str,
        effect: Effect,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let answer = match live.send(&by_hash(script, &arguments)).await {
            Err(error) if is_no_script(&error) => Box::pin(live.send(&in_full(script, &arguments))).await,
            answer => answer,
        };
        answer.map_err(|error| self.failed(live, error, operation, effect))
    }

    /// Maps the error, and gives the connection up if it must be.
    pub(crate) fn failed(&self, live: &Live, error: RedisError, operation: &'static str, effect: Effect) -> Error {
        if error.is_io_error() || error.is_unrecoverable_error() {
            self.lose(live.generation);
        }
        error::of_command(error, operation, effect)
    }

    /// The connection, with all gathered operations sent before whatever comes next.
    pub(crate) async fn live_in_order(&self, operation: &'static str) -> Result<Arc<Live>> {
        let live = match self.live_now() {
            Some(live) => live,
            None => Box::pin(self.live()).await.map_err(|error| error.with_operation(operation))?,
        };
        self.gather.send_all(self, &live);
        Ok(live)
    }

    /// The connection, if there is one.
    pub(crate) fn live_now(&self) -> Option<Arc<Live>> {
        match &*self.state() {
            State::Live(live) => Some(Arc::clone(live)),
            _ => None,
        }
    }

    /// The connection. If there is none, all who ask share one attempt.
    pub(crate) async fn live(&self) -> Result<Arc<Live>> {
        let connecting = {
            let mut state = self.state();
            match &*state {
                State::Live(live) => return Ok(Arc::clone(live)),
                State::Closed => {
                    return Err(error::plain(ErrorKind::Closed, "connect", "the backend was closed"));
                }
                State::Connecting(connecting) => connecting.clone(),
                State::Down => {
                    let Some(this) = self.this.upgrade() else {
                        return Err(error::plain(ErrorKind::Closed, "connect", "the backend was dropped"));
                    };
                    let connecting = async move { this.connect().await }.boxed().shared();
                    // Spawned, so that it ends also if nobody goes on asking.
                    drop(tokio::spawn(connecting.clone()));
                    *state = State::Connecting(connecting.clone());
                    connecting
                }
            }
        };
        connecting.await
    }

    async fn connect(self: Arc<Self>) -> Result<Arc<Live>> {
        let opened = self.open().await;
        if let Ok(live) = &opened {
            self.end_doomed(live).await;
        }
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            return Err(error::plain(ErrorKind::Closed, "connect", "the backend was closed"));
        }
        match opened {
            Ok(live) => {
                *state = State::Live(Arc::clone(&live));
                drop(state);
                tracing::debug!(endpoint = %self.endpoint, id = live.id, pushes = live.pushes, "connected");
                // Whoever was armed on an earlier connection is not armed on this one.
                self.registry.wake_all();
                Ok(live)
            }
            Err(error) => {
                *state = State::Down;
                Err(error)
            }
        }
    }

    async fn open(self: &Arc<Self>) -> Result<Arc<Live>> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.config.connect_timeout))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let pushing = match self.config.wake_up {
            WakeMode::Pushed => {
                let settings = settings.clone().set_push_sender(self.push_sender(generation));
                match self.client.get_multiplexed_async_connection_with_config(&settings).await {
                    Ok(connection) => Some(connection),
                    Err(error) if probe::lacks_resp3(&error) => {
                        tracing::warn!(endpoint = %self.endpoint, "no RESP3 here: waiters poll");
                        None
                    }
                    Err(error) => return Err(error::of_connect(error, &self.endpoint)),
                }
            }
            WakeMode::Polled => None,
        };
        let (connection, can_push) = match pushing {
            Some(connection) => (connection, true),
            None => {
                let client = probe::with_resp2(&self.client)?;
                let connection = client.get_multiplexed_async_connection_with_config(&settings).await;
                (connection.map_err(|error| error::of_connect(error, &self.endpoint))?, false)
            }
        };
        let mut probed = connection.clone();
        probed.set_response_timeout(self.config.response_timeout);
        let found = probe::check(probed, can_push, &self.endpoint).await?;
        Ok(Arc::new(Live {
            connection,
            response_timeout: self.config.response_timeout,
            time_outs: Arc::clone(&self.time_outs),
            generation,
            id: found.id,
            run: found.run,
            pushes: found.pushes,
            sight: Mutex::default(),
            warmth: Warmth::new(),
            one_at_a_time: AtomicBool::new(false),
        }))
    }

    fn push_sender(&self, generation: u64) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
        let registry = Arc::clone(&self.registry);
        let link = Weak::clone(&self.this);
        move |push: PushInfo| {
            match push.kind {
                PushKind::Invalidate => match push.data.as_slice() {
                    [Value::Array(keys)] => {
                        for key in keys {
                            if let Value::BulkString(key) = key {
                                registry.wake(key);
                            }
                        }
                    }
                    // A null key: the whole database was flushed, or replaced by that of another server.
                    _ => {
                        if let Some(live) = link.upgrade().and_then(|link| link.live_now()) {
                            live.warmth.lose();
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
                State::Live(live) if live.generation == generation => {
                    let lost = Arc::clone(live);
                    *state = State::Down;
                    lost
                }
                _ => return,
            }
        };
        tracing::warn!(endpoint = %self.endpoint, id = lost.id, "the connection is lost");
        if let Some(id) = lost.id.filter(|_| !lost.run.is_empty()) {
            let doomed = Doomed { id, run: lost.run.clone() };
            self.doomed.lock().unwrap_or_else(PoisonError::into_inner).push(doomed);
        }
        // Nothing can wake on it any more.
        self.registry.wake_all();
    }

    /// Ends lost connections at the server, as far as it lets us.
    async fn end_doomed(&self, live: &Live) {
        let doomed = std::mem::take(&mut *self.doomed.lock().unwrap_or_else(PoisonError::into_inner));
        for Doomed { id, .. } in doomed.into_iter().filter(|doomed| doomed.run == live.run) {
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("ID").arg(id);
            if let Err(error) = live.send(&kill).await {
                // Usually there is nothing left to end.
                tracing::trace!(endpoint = %self.endpoint, id, %error, "could not end the lost connection");
            }
        }
    }

    /// Ends the connection. There will be no other.
    pub(crate) fn close(&self) {
        *self.state() = State::Closed;
        self.registry.wake_all();
    }

    pub(crate) fn upgrade(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Queues the command at the first poll, then waits for the answer.
    pub(crate) async fn send(&self, cmd: &Cmd) -> Result<Value, RedisError> {
        let mut connection = self.connection.clone();
        self.answered(connection.send_packed_command(cmd)).await?.extract_error()
    }

    /// Queues the commands at the first poll, then waits for the answers; errors among them are left where they are.
    pub(crate) async fn send_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let mut connection = self.connection.clone();
        self.answered(connection.send_packed_commands(pipeline, 0, pipeline.len())).await
    }

    /// As [`send_all`](Self::send_all).
    pub(crate) fn send_owned(self: &Arc<Self>, pipeline: Pipeline) -> Sent {
        let live = Arc::clone(self);
        Box::pin(async move { live.send_all(&pipeline).await })
    }

    /// The answer, if it comes in time.
    async fn answered<T>(&self, answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
        // Unconstrained: tokio's cooperative budget could otherwise put the first poll off before the command is queued.
        match self.time_outs.within(self.response_timeout, unconstrained(answer)).await {
            Ok(answer) => answer,
            Err(Elapsed) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }

    /// Which run of the server this is; empty if it does not tell.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    pub(crate) fn sight(&self) -> Option<Arc<Sight>> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_sight(&self, sight: Option<Arc<Sight>>) {
        *self.sight.lock().unwrap_or_else(PoisonError::into_inner) = sight;
    }

    /// Whether the token counter of this slot stands above the server's clock.
    pub(crate) fn is_warm(&self, slot: Slot) -> bool {
        // Without pushes there may be a proxy, behind which the server can change without the connection breaking.
        self.pushes && self.warmth.is_warm(slot)
    }

    /// Whether one script may be given the keys of many locks.
    pub(crate) fn takes_many(&self) -> bool {
        // Without pushes there may be a proxy that sends a script to where its first key is.
        self.pushes && !self.one_at_a_time.load(Ordering::Relaxed)
    }

    /// A script for many keys was refused: this is a part of a cluster.
    pub(crate) fn take_one_at_a_time(&self) {
        self.one_at_a_time.store(true, Ordering::Relaxed);
    }

    /// This slot's counter was raised.
    pub(crate) fn warm(&self, slot: Slot) {
        self.warmth.hours[slot.index()].store(self.warmth.hour(), Ordering::Relaxed);
    }

    /// This slot's counter is not what it was.
    pub(crate) fn cool(&self, slot: Slot) {
        self.warmth.hours[slot.index()].store(0, Ordering::Relaxed);
    }
}

impl Warmth {
    fn new() -> Self {
        Self { opened: Instant::now(), hours: (0..keys::SLOTS).map(|_| AtomicU8::new(0)).collect() }
    }

    fn is_warm(&self, slot: Slot) -> bool {
        self.hours[slot.index()].load(Ordering::Relaxed) == self.hour()
    }

    /// Counters expire a day after the last script: once an hour it runs again, and puts that off.
    fn hour(&self) -> u8 {
        (self.opened.elapsed().as_secs() / 3600 % 255) as u8 + 1
    }

    fn lose(&self) {
        for hour in &self.hours {
            hour.store(0, Ordering::Relaxed);
        }
    }
}

/// `EVALSHA hash …`
pub(crate) fn by_hash(script: &Script, arguments: &impl Fn(&mut Cmd)) -> Cmd {
    // Usual commands fit into this, so that it grows at most once.
    let mut cmd = Cmd::with_capacity(10, 256);
    cmd.arg("EVALSHA").arg(script.hash());
    arguments(&mut cmd);
    cmd
}

/// `EVAL source …`, which the server remembers.
pub(crate) fn in_full(script: &Script, arguments: &impl Fn(&mut Cmd)) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(script.source);
    arguments(&mut cmd);
    cmd
}

pub(crate) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

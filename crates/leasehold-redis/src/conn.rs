//! [`Conn`]: a connection that works.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use leasehold_core::Restart;
use redis::{Cmd, Pipeline, RedisError, Value, aio::MultiplexedConnection};
use tokio::task::unconstrained;

use crate::{
    handshake::ServerInfo,
    keys::{self, Slot},
    node_state::CachedNodeState,
    scripts::Script,
    stream::{Meter, Task},
};

/// A connection that works, as far as we know.
pub(crate) struct Conn {
    connection: MultiplexedConnection,
    /// Ends with it, unless the driver sees to that itself.
    task: Option<Task>,
    meter: Arc<Meter>,
    /// For how long an answer is awaited.
    timeout: Duration,
    /// Counts the connections of a link.
    pub(crate) generation: u64,
    /// As the server knows the connection, and which run of the server this is: see [`ServerInfo`].
    pub(crate) id: Option<i64>,
    run: String,
    /// Whether the server pushes invalidations on it.
    pub(crate) pushes: bool,
    pub(crate) restart: Restart,
    /// What is known of its memory, once a quorum has asked.
    node_state: Mutex<Option<Arc<CachedNodeState>>>,
    warmth: SeededSlots,
    /// A script for many keys was refused.
    one_at_a_time: AtomicBool,
}

/// Whose token counters this connection has raised above the server's clock: for each slot the hour
/// in which it did, or 0.
struct SeededSlots {
    opened: Instant,
    hours: Box<[AtomicU8]>,
}

/// A pipeline that is in the connection's queue and whose answers are awaited.
pub(crate) type Sent = Pin<Box<dyn Future<Output = Result<Vec<Value>, RedisError>> + Send>>;

impl Conn {
    pub(crate) fn new(
        (connection, task): (MultiplexedConnection, Option<Task>),
        meter: Arc<Meter>,
        generation: u64,
        found: ServerInfo,
        timeout: Duration,
    ) -> Self {
        let ServerInfo {
            id,
            run,
            pushes,
            restart,
        } = found;
        Self {
            connection,
            task,
            meter,
            timeout,
            generation,
            id,
            run,
            pushes,
            restart,
            node_state: Mutex::default(),
            warmth: SeededSlots::new(),
            one_at_a_time: AtomicBool::new(false),
        }
    }

    /// Whether it is known to have ended, so that nothing that is sent now reaches the server.
    pub(crate) fn is_over(&self) -> bool {
        self.task.as_ref().is_some_and(Task::is_over)
    }

    /// Runs a script. The first poll queues it.
    pub(crate) async fn run(
        &self,
        script: &Script,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value, RedisError> {
        match self.send(&by_hash(script, &arguments)).await {
            Err(error) if is_no_script(&error) => {
                Box::pin(self.send(&in_full(script, &arguments))).await
            }
            answer => answer,
        }
    }

    /// Queues the command at the first poll, then waits for the answer.
    pub(crate) async fn send(&self, cmd: &Cmd) -> Result<Value, RedisError> {
        let mut connection = self.connection.clone();
        self.answered(connection.send_packed_command(cmd))
            .await?
            .extract_error()
    }

    /// Queues the commands at the first poll, then waits for the answers; errors among them are
    /// left where they are.
    pub(crate) async fn send_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let mut connection = self.connection.clone();
        self.answered(connection.send_packed_commands(pipeline, 0, pipeline.len()))
            .await
    }

    /// As [`send_all`](Self::send_all).
    pub(crate) fn send_owned(self: &Arc<Self>, pipeline: Pipeline) -> Sent {
        let live = Arc::clone(self);
        Box::pin(async move { live.send_all(&pipeline).await })
    }

    /// The answer, if it comes in time. Not an async function: that would keep the driver's future,
    /// of a kilobyte, twice.
    fn answered<T>(
        &self,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> impl Future<Output = Result<T, RedisError>> {
        // Unconstrained: tokio's cooperative budget could otherwise put the first poll off before
        // the command is queued.
        let within = tokio::time::timeout(self.timeout, unconstrained(answer));
        within.map(|answer| {
            if answer.is_ok() {
                self.meter.reset();
            }
            answer.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
        })
    }

    /// Which run of the server this is; empty if it does not tell.
    pub(crate) fn run_id(&self) -> &str {
        &self.run
    }

    pub(crate) fn node_state(&self) -> Option<Arc<CachedNodeState>> {
        self.node_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_node_state(&self, node_state: Option<Arc<CachedNodeState>>) {
        *self
            .node_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = node_state;
    }

    /// Whether the token counter of this slot stands above the server's clock.
    pub(crate) fn is_warm(&self, slot: Slot) -> bool {
        // Without pushes there may be a proxy, behind which the server can change without the
        // connection breaking.
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

    /// No counter is what it was.
    pub(crate) fn cool_all(&self) {
        self.warmth.lose();
    }

    /// This slot's counter is not what it was.
    pub(crate) fn cool(&self, slot: Slot) {
        self.warmth.hours[slot.index()].store(0, Ordering::Relaxed);
    }
}

impl SeededSlots {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            hours: (0..keys::SLOTS).map(|_| AtomicU8::new(0)).collect(),
        }
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
fn in_full(script: &Script, arguments: &impl Fn(&mut Cmd)) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(script.source);
    arguments(&mut cmd);
    cmd
}

pub(crate) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

//! [`Connection`]: one open connection.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
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
    quorum::state::CachedNodeState,
    scripts::Script,
    stream::{Meter, Task},
};

/// A connection that is open as far as is known.
pub(crate) struct Connection {
    connection: MultiplexedConnection,
    /// The task of the driver. `None` if the driver manages it.
    task: Option<Task>,
    meter: Arc<Meter>,
    /// The maximum time for an answer.
    timeout: Duration,
    /// Counts the connections of a manager.
    pub(crate) generation: u64,
    /// The id of the connection at the server. See [`ServerInfo`].
    pub(crate) id: Option<i64>,
    run: String,
    /// Whether the server pushes invalidations on it.
    pub(crate) pushes: bool,
    pub(crate) restart: Restart,
    /// The state of the server as a node of a quorum, once it was read.
    node_state: Mutex<Option<Arc<CachedNodeState>>>,
    seeded_slots: SeededSlots,
}

/// The slots whose token counters this connection has raised above the server's clock: for each
/// slot the hour in which it did so, or 0.
struct SeededSlots {
    opened: Instant,
    hours: Box<[AtomicU8]>,
}

/// A pipeline that is in the connection's queue and whose answers are awaited.
pub(crate) type Sent = Pin<Box<dyn Future<Output = Result<Vec<Value>, RedisError>> + Send>>;

impl Connection {
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
            seeded_slots: SeededSlots::new(),
        }
    }

    /// Returns whether the connection has ended, so that nothing sent now reaches the server.
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

    /// Queues the commands at the first poll, then waits for the answers. Errors stay among the
    /// answers.
    pub(crate) async fn send_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let mut connection = self.connection.clone();
        self.answered(connection.send_packed_commands(pipeline, 0, pipeline.len()))
            .await
    }

    /// Does the same as [`send_all`](Self::send_all), and owns its arguments.
    pub(crate) fn send_owned(self: &Arc<Self>, pipeline: Pipeline) -> Sent {
        let conn = Arc::clone(self);
        Box::pin(async move { conn.send_all(&pipeline).await })
    }

    /// Waits for the answer within the time-out. Not an async function, which would contain the
    /// driver's future of a kilobyte twice.
    fn answered<T>(
        &self,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> impl Future<Output = Result<T, RedisError>> {
        // Unconstrained, because tokio's cooperative budget could delay the first poll, which
        // queues the command.
        let within = tokio::time::timeout(self.timeout, unconstrained(answer));
        within.map(|answer| {
            if answer.is_ok() {
                self.meter.reset();
            }
            answer.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
        })
    }

    /// Returns the run of the server, or an empty string if it is unknown.
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

    /// Returns whether the token counter of this slot is known to be above the server's clock.
    pub(crate) fn is_seeded(&self, slot: Slot) -> bool {
        // Without pushes there may be a proxy, behind which the server can change without the
        // connection breaking.
        self.pushes && self.seeded_slots.is_seeded(slot)
    }

    /// Records that the counter of this slot was raised.
    pub(crate) fn mark_seeded(&self, slot: Slot) {
        self.seeded_slots.hours[slot.index()].store(self.seeded_slots.hour(), Ordering::Relaxed);
    }

    /// Records that all counters may have been lost.
    pub(crate) fn clear_all_seeded(&self) {
        self.seeded_slots.lose();
    }

    /// Records that the counter of this slot may have been lost.
    pub(crate) fn clear_seeded(&self, slot: Slot) {
        self.seeded_slots.hours[slot.index()].store(0, Ordering::Relaxed);
    }
}

impl SeededSlots {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            hours: (0..keys::SLOTS).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    fn is_seeded(&self, slot: Slot) -> bool {
        self.hours[slot.index()].load(Ordering::Relaxed) == self.hour()
    }

    /// Returns the current hour. Counters expire a day after the last script, so the script runs at
    /// least once an hour.
    fn hour(&self) -> u8 {
        (self.opened.elapsed().as_secs() / 3600 % 255) as u8 + 1
    }

    fn lose(&self) {
        for hour in &self.hours {
            hour.store(0, Ordering::Relaxed);
        }
    }
}

/// Returns the command `EVALSHA hash …`.
pub(crate) fn by_hash(script: &Script, arguments: &impl Fn(&mut Cmd)) -> Cmd {
    // Usual commands fit into this, so that it grows at most once.
    let mut cmd = Cmd::with_capacity(10, 256);
    cmd.arg("EVALSHA").arg(script.hash());
    arguments(&mut cmd);
    cmd
}

/// Returns the command `EVAL source …`, after which the server knows the script.
pub(crate) fn in_full(script: &Script, arguments: &impl Fn(&mut Cmd)) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(script.source);
    arguments(&mut cmd);
    cmd
}

pub(crate) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

/// Returns whether the user may not run the command or use its keys.
pub(crate) fn is_no_permission(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoPerm)
}

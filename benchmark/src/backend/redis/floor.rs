//! The floor: the bare driver with Leasehold's own commands and scripts.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use leasehold_core::AcquisitionId;
use leasehold_integration::{HarnessError, Result};
use redis::{Value, aio::MultiplexedConnection};
use tokio::sync::Notify;

use super::{
    connection::{self, Wakes, failed},
    script,
};
use crate::{
    scenario::Scenario,
    subject::{FLOOR, Lock, Locks, Source},
};

const ACQUIRE: &str = script!(
    "shared/time",
    "shared/tokens",
    "shared/acquisition",
    "shared/waiters",
    "acquire"
);
const RELEASE: &str = script!("shared/values", "release");
const RENEW: &str = script!("shared/values", "renew");
const TTL_MS: u64 = 30_000;
/// About as long as Leasehold's default label, which has host, program and process.
const LABEL: &str = "host/floor/1234";
/// Leasehold has one counter per slot of a cluster.
const COUNTERS: u64 = 16_384;

/// Leasehold's commands over the bare driver, in the same round trips, each sent alone and
/// immediately:
///
/// - an acquisition is `SET NX PX` and `INCRBY` of a counter in one write; the first one of a lock
///   is the acquire script;
/// - a refused acquisition registers with the acquire script, which arms the invalidation of the
///   key, and runs it again after each invalidation;
/// - a release and a renewal are one script each.
///
/// There is no deadline, automatic renewal, queue, batching or cleanup.
pub(super) struct Floor {
    url: String,
    acquires: Acquires,
}

/// The commands of every acquisition of a lock but the first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Acquires {
    ByCommands,
    ByScript,
}

impl Floor {
    /// Creates the floor to which Leasehold's ratio refers.
    pub(super) fn by_commands(url: String) -> Self {
        Self {
            url,
            acquires: Acquires::ByCommands,
        }
    }

    /// Creates a variant with two scripts per pair and no plain commands, which costs the server
    /// more.
    pub(super) fn by_scripts(url: String) -> Self {
        Self {
            url,
            acquires: Acquires::ByScript,
        }
    }
}

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        match self.acquires {
            Acquires::ByCommands => FLOOR,
            Acquires::ByScript => "scripts",
        }
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        match self.acquires {
            // A crowd without a local queue is a stampede, which is no useful floor.
            Acquires::ByCommands => !matches!(scenario, Scenario::Crowd | Scenario::Contenders),
            Acquires::ByScript => scenario == Scenario::Pair,
        }
    }

    async fn open(&self) -> Result<FloorLocks> {
        let wakes = Wakes::default();
        let mut connection = connection::open(&self.url, &wakes).await?;
        let acquire = connection::load(&mut connection, ACQUIRE).await?;
        let release = connection::load(&mut connection, RELEASE).await?;
        let renew = connection::load(&mut connection, RENEW).await?;
        Ok(FloorLocks {
            connection,
            wakes,
            acquire,
            release,
            renew,
            acquires: self.acquires,
        })
    }
}

pub(super) struct FloorLocks {
    connection: MultiplexedConnection,
    wakes: Wakes,
    acquire: Arc<str>,
    release: Arc<str>,
    renew: Arc<str>,
    acquires: Acquires,
}

pub(super) struct FloorLock {
    connection: MultiplexedConnection,
    changed: Arc<Notify>,
    acquire: Arc<str>,
    release: Arc<str>,
    key: Arc<str>,
    counter: String,
    /// The keys of the waiters, in the order of the script.
    waiters: [String; 3],
    acquires: Acquires,
    /// Whether the script has raised the counter.
    raised: bool,
}

/// The key and its value.
pub(super) struct FloorHeld(Arc<str>, String);

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        let key = format!("floor/{name}");
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        FloorLock {
            connection: self.connection.clone(),
            changed: self.wakes.of(&key),
            acquire: Arc::clone(&self.acquire),
            release: Arc::clone(&self.release),
            counter: format!("{{{}}}f:lh4:token", hasher.finish() % COUNTERS),
            waiters: ["order", "writers", "waiters"].map(|list| format!("{{{key}}}:lh2:{list}")),
            key: key.into(),
            acquires: self.acquires,
            raised: false,
        }
    }

    async fn renew(&self, FloorHeld(key, value): &FloorHeld) -> Result<()> {
        let mut renew = redis::cmd("EVALSHA");
        renew
            .arg(&*self.renew)
            .arg(1)
            .arg(&**key)
            .arg(value)
            .arg(TTL_MS);
        match renew
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed)?
        {
            1 => Ok(()),
            _ => Err(HarnessError::new("the floor lost a lock")),
        }
    }

    const RENEWED_BY_HAND: bool = true;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl FloorLock {
    /// Acquires with plain commands. Returns whether the lock was free.
    async fn take(&mut self, value: &str) -> Result<bool> {
        let mut pipeline = redis::Pipeline::with_capacity(2);
        pipeline
            .cmd("SET")
            .arg(&*self.key)
            .arg(value)
            .arg("NX")
            .arg("PX")
            .arg(TTL_MS);
        pipeline.cmd("INCRBY").arg(&self.counter).arg(2);
        let (set, _token): (Value, i64) = pipeline
            .query_async(&mut self.connection)
            .await
            .map_err(failed)?;
        Ok(set == Value::Okay)
    }

    /// Acquires with the script. Returns whether the lock was free. If not, the invalidation is
    /// armed and the waiter registered.
    async fn take_or_arm(&mut self, value: &str, options: &[&str]) -> Result<bool> {
        let mut acquire = redis::cmd("EVALSHA");
        acquire
            .arg(&*self.acquire)
            .arg(2 + self.waiters.len())
            .arg(&*self.key)
            .arg(&self.counter)
            .arg(&self.waiters)
            .arg(value)
            .arg(TTL_MS)
            .arg(options);
        match acquire
            .query_async(&mut self.connection)
            .await
            .map_err(failed)?
        {
            Value::BulkString(_) => Ok(true),
            Value::Array(_) => Ok(false),
            other => Err(HarnessError::new(format!(
                "the acquire script answered {other:?}"
            ))),
        }
    }
}

impl Lock for FloorLock {
    type Held = FloorHeld;

    async fn acquire(&mut self) -> Result<FloorHeld> {
        let value = format!("{}:{LABEL}", AcquisitionId::random());
        if self.raised && self.acquires == Acquires::ByCommands && self.take(&value).await? {
            return Ok(FloorHeld(Arc::clone(&self.key), value));
        }
        let mut options = ["wait"].as_slice();
        while !self.take_or_arm(&value, options).await? {
            self.changed.notified().await;
            options = &["wait", "registered"];
        }
        self.raised = true;
        Ok(FloorHeld(Arc::clone(&self.key), value))
    }

    async fn release(&mut self, FloorHeld(key, value): FloorHeld) -> Result<()> {
        let mut release = redis::cmd("EVALSHA");
        release.arg(&*self.release).arg(1).arg(&*key).arg(value);
        match release
            .query_async(&mut self.connection)
            .await
            .map_err(failed)?
        {
            1 => Ok(()),
            _ => Err(HarnessError::new(
                "the floor released a lock that it did not hold",
            )),
        }
    }
}

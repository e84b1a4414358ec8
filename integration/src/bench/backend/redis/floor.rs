//! The floor: the bare driver with Leasehold's own commands and scripts.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use leasehold_core::AcquisitionId;
use redis::{Value, aio::MultiplexedConnection};
use tokio::sync::Notify;

use super::connection::{self, Wakes, failed};
use crate::{
    HarnessError, Result,
    bench::{
        scenario::Scenario,
        subject::{FLOOR, Lock, Locks, Source},
    },
};

const ACQUIRE: &str = concat!(
    include_str!("../../../../../crates/leasehold-redis/src/scripts/waiters.lua"),
    include_str!("../../../../../crates/leasehold-redis/src/scripts/acquire.lua")
);
const RELEASE: &str = include_str!("../../../../../crates/leasehold-redis/src/scripts/release.lua");
const RENEW: &str = include_str!("../../../../../crates/leasehold-redis/src/scripts/renew.lua");
const TTL_MS: u64 = 30_000;
/// About as long as Leasehold's default label: host, program and process.
const LABEL: &str = "host/floor/1234";
/// Leasehold has a counter for each slot of a cluster.
const COUNTERS: u64 = 16_384;

/// The same commands over the bare driver, in the same round trips, each sent alone and at once:
///
/// - an acquisition is `SET NX PX` and `INCRBY` of a counter in one write, but the first one of a
///   lock the acquire script;
/// - who is refused registers by the acquire script, which arms the invalidation of the key, and
///   after each of those tries again with it;
/// - a release, and a renewal, is its script.
///
/// Nothing else: no deadline, no renewal, no queue, no gathering, no cleaning up.
pub(super) struct Floor {
    url: String,
    acquires: Acquires,
}

/// How a lock is acquired that was acquired before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Acquires {
    ByCommands,
    ByScript,
}

impl Floor {
    /// What Leasehold's ratio is of.
    pub(super) fn by_commands(url: String) -> Self {
        Self {
            url,
            acquires: Acquires::ByCommands,
        }
    }

    /// Two scripts a pair, as a lock without the plain commands would send: costs the server more.
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
            // A crowd without a queue of its own is a stampede, which is no floor of anything.
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
    /// What the keys of waiters begin with.
    base: String,
    acquires: Acquires,
    /// Whether the script has raised the counter.
    raised: bool,
}

/// The key and the value in it.
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
            base: format!("{{{key}}}:lh2:"),
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
    /// By plain commands. Whether it was free.
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

    /// By the script. Whether it was free; else it is armed, and the waiter registered.
    async fn take_or_arm(&mut self, value: &str, flags: &str) -> Result<bool> {
        let mut acquire = redis::cmd("EVALSHA");
        acquire
            .arg(&*self.acquire)
            .arg(1)
            .arg(&*self.key)
            .arg(value)
            .arg(TTL_MS);
        acquire.arg(&self.counter).arg(flags).arg(&self.base);
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
        // W aiting; r egistered before.
        let mut flags = "w";
        while !self.take_or_arm(&value, flags).await? {
            self.changed.notified().await;
            flags = "wr";
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
            _ => Err(HarnessError::new("the floor released what it did not hold")),
        }
    }
}

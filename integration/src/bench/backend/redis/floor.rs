//! The floor: the bare driver with Leasehold's own two scripts.

use std::sync::Arc;

use leasehold_core::OwnerId;
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

const ACQUIRE: &str = include_str!("../../../../../crates/leasehold-redis/src/scripts/acquire.lua");
const RELEASE: &str = include_str!("../../../../../crates/leasehold-redis/src/scripts/release.lua");
const RENEW: &str = include_str!("../../../../../crates/leasehold-redis/src/scripts/renew.lua");
const TTL_MS: u64 = 30_000;

/// The same two scripts over the bare driver, one round trip each; a waiter is woken by the invalidation of the key. Nothing
/// else: no deadline, no renewal, no queue, no cleaning up, and no label in the value.
pub(super) struct Floor(pub(super) String);

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        // A crowd without a queue of its own is a stampede, which is no floor of anything.
        scenario != Scenario::Crowd
    }

    async fn open(&self) -> Result<FloorLocks> {
        let wakes = Wakes::default();
        let mut connection = connection::open(&self.0, &wakes).await?;
        let acquire = connection::load(&mut connection, ACQUIRE).await?;
        let release = connection::load(&mut connection, RELEASE).await?;
        let renew = connection::load(&mut connection, RENEW).await?;
        Ok(FloorLocks { connection, wakes, acquire, release, renew })
    }
}

pub(super) struct FloorLocks {
    connection: MultiplexedConnection,
    wakes: Wakes,
    acquire: Arc<str>,
    release: Arc<str>,
    renew: Arc<str>,
}

pub(super) struct FloorLock {
    connection: MultiplexedConnection,
    changed: Arc<Notify>,
    acquire: Arc<str>,
    release: Arc<str>,
    key: Arc<str>,
    token_key: String,
}

/// The key and the value in it.
pub(super) struct FloorHeld(Arc<str>, String);

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        let key = format!("floor/{name}");
        FloorLock {
            connection: self.connection.clone(),
            changed: self.wakes.of(&key),
            acquire: Arc::clone(&self.acquire),
            release: Arc::clone(&self.release),
            token_key: format!("{{{key}}}:lh2:token"),
            key: key.into(),
        }
    }

    async fn renew(&self, FloorHeld(key, value): &FloorHeld) -> Result<()> {
        let mut renew = redis::cmd("EVALSHA");
        renew.arg(&*self.renew).arg(1).arg(&**key).arg(value).arg(TTL_MS);
        match renew.query_async(&mut self.connection.clone()).await.map_err(failed)? {
            1 => Ok(()),
            _ => Err(HarnessError::new("the floor lost a lock")),
        }
    }

    const RENEWED_BY_HAND: bool = true;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for FloorLock {
    type Held = FloorHeld;

    async fn acquire(&mut self) -> Result<FloorHeld> {
        let value = OwnerId::random().to_string();
        loop {
            let mut acquire = redis::cmd("EVALSHA");
            acquire.arg(&*self.acquire).arg(1).arg(&*self.key).arg(&value).arg(TTL_MS).arg(&self.token_key);
            match acquire.query_async(&mut self.connection).await.map_err(failed)? {
                Value::BulkString(_) => return Ok(FloorHeld(Arc::clone(&self.key), value)),
                Value::Array(_) => self.changed.notified().await,
                other => return Err(HarnessError::new(format!("the acquire script answered {other:?}"))),
            }
        }
    }

    async fn release(&mut self, FloorHeld(key, value): FloorHeld) -> Result<()> {
        let mut release = redis::cmd("EVALSHA");
        release.arg(&*self.release).arg(1).arg(&*key).arg(value);
        match release.query_async(&mut self.connection).await.map_err(failed)? {
            1 => Ok(()),
            _ => Err(HarnessError::new("the floor released what it did not hold")),
        }
    }
}

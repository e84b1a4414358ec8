//! The well-known recipe for one Redis server.

use std::sync::Arc;

use leasehold_core::AcquisitionId;
use leasehold_integration::{HarnessError, Result};
use redis::aio::MultiplexedConnection;

use super::connection::{self, failed};
use crate::{
    scenario::Scenario,
    subject::{Lock, Locks, Source},
};

const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";
const TTL_MS: u64 = 30_000;

/// `SET NX PX`, and a script that compares and deletes. It has no fencing tokens and cannot wait.
pub(super) struct Plain(pub(super) String);

impl Source for Plain {
    type Locks = PlainLocks;

    fn name(&self) -> &'static str {
        "plain"
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        scenario == Scenario::Pair
    }

    async fn open(&self) -> Result<PlainLocks> {
        let mut connection = connection::open_untracked(&self.0).await?;
        let release = connection::load(&mut connection, RELEASE).await?;
        Ok(PlainLocks {
            connection,
            release,
        })
    }
}

pub(super) struct PlainLocks {
    connection: MultiplexedConnection,
    release: Arc<str>,
}

pub(super) struct PlainLock {
    connection: MultiplexedConnection,
    release: Arc<str>,
    key: String,
}

impl Locks for PlainLocks {
    type Lock = PlainLock;

    fn lock(&self, name: &str) -> PlainLock {
        PlainLock {
            connection: self.connection.clone(),
            release: Arc::clone(&self.release),
            key: format!("plain/{name}"),
        }
    }

    async fn renew(&self, _held: &String) -> Result<()> {
        Err(HarnessError::new("`plain` does not renew"))
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for PlainLock {
    /// The value.
    type Held = String;

    async fn acquire(&mut self) -> Result<String> {
        let value = AcquisitionId::random().to_string();
        let mut set = redis::cmd("SET");
        set.arg(&self.key)
            .arg(&value)
            .arg("NX")
            .arg("PX")
            .arg(TTL_MS);
        match set
            .query_async(&mut self.connection)
            .await
            .map_err(failed)?
        {
            redis::Value::Okay => Ok(value),
            _ => Err(HarnessError::new("`plain` found another holder")),
        }
    }

    async fn release(&mut self, value: String) -> Result<()> {
        let mut release = redis::cmd("EVALSHA");
        release.arg(&*self.release).arg(1).arg(&self.key).arg(value);
        match release
            .query_async(&mut self.connection)
            .await
            .map_err(failed)?
        {
            1 => Ok(()),
            _ => Err(HarnessError::new(
                "`plain` released a lock that it did not hold",
            )),
        }
    }
}

//! One Redis server.

pub(super) mod connection;
mod distributed_lock;
mod floor;
mod plain;
mod rslock;

use std::sync::Mutex;

use leasehold_core::LockClient;
use leasehold_integration::{HarnessError, Result, server::RedisServer};
use leasehold_redis::RedisBackend;

use super::{Backend, BackendName};
use crate::subject::{Leasehold, Subject};

/// Returns the source of a script of Leasehold: the named fragments, then the script.
macro_rules! script {
    ($($file:literal),+) => {
        concat!($(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/../crates/leasehold-redis/src/scripts/", $file, ".lua"
        ))),+)
    };
}
pub(super) use script;

pub(super) struct Redis {
    server: RedisServer,
    connection: Mutex<::redis::Connection>,
}

impl Redis {
    pub(super) fn start() -> Result<Self> {
        let server = RedisServer::start()?;
        let connection = Mutex::new(server.connection()?);
        Ok(Self { server, connection })
    }
}

impl Backend for Redis {
    fn name(&self) -> BackendName {
        BackendName::Redis
    }

    fn location(&self) -> Option<String> {
        Some(self.server.url())
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subjects_at(&self.server.url())
    }

    /// Returns the number of commands sent by clients. A script counts as one.
    fn commands(&self) -> Result<Option<u64>> {
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let stats: String = ::redis::cmd("INFO")
            .arg("commandstats")
            .query(&mut connection)
            .map_err(|error| HarnessError::caused_by("INFO failed", error))?;
        Ok(Some(requests(&stats)))
    }
}

/// Returns the sum over the commands that clients send. In `crowd` no subject sends the other
/// commands of scripts (SET, PTTL, …) itself, except the SET before each INCRBY. The sum is an
/// upper bound, because the short script of a yielding attempt calls INCRBY too.
fn requests(stats: &str) -> u64 {
    let calls = |name: &str| {
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")))
            .unwrap_or("0");
        line.split(',')
            .next()
            .and_then(|calls| calls.parse::<u64>().ok())
            .unwrap_or(0)
    };
    calls("evalsha")
        + calls("eval")
        + 2 * calls("incrby")
        + calls("ping")
        + calls("client|tracking")
}

pub(super) fn subjects_at(url: &str) -> Vec<Box<dyn Subject>> {
    let address = url.to_owned();
    let leasehold = Leasehold::new(move || {
        let address = address.clone();
        async move { RedisBackend::connect(&address).await.map(LockClient::new) }
    });
    let url = || url.to_owned();
    vec![
        Box::new(floor::Floor::by_commands(url())),
        Box::new(leasehold),
        Box::new(floor::Floor::by_scripts(url())),
        Box::new(plain::Plain(url())),
        Box::new(rslock::Rslock(url())),
        Box::new(distributed_lock::DistributedLockRedis(url())),
    ]
}

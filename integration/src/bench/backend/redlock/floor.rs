//! The floor: the bare driver with Leasehold's own scripts, five at a time in one task.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::try_join_all;
use leasehold_core::OwnerId;
use redis::{Value, aio::MultiplexedConnection};

use crate::{
    HarnessError, Result,
    bench::{
        backend::redis::connection::{self, Wakes, failed},
        scenario::Scenario,
        subject::{FLOOR, Lock, Locks, Source},
    },
};

const ACQUIRE: &str = concat!(
    include_str!("../../../../../crates/leasehold-redis/src/scripts/waiters.lua"),
    include_str!("../../../../../crates/leasehold-redis/src/scripts/quorum_acquire.lua")
);
const RELEASE: &str = include_str!("../../../../../crates/leasehold-redis/src/scripts/release.lua");
const TTL_MS: u64 = 30_000;
/// About as long as Leasehold's default label: host, program and process.
const LABEL: &str = "host/floor/1234";
/// What the servers' own keys begin with.
const NODE: &str = ":lh4:";

/// Five acquire scripts at once, and all their answers; then five release scripts. All answers must be grants, and nothing is
/// undone, tried again, written back or renewed.
pub(super) struct Floor(pub(super) String);

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        scenario == Scenario::Pair
    }

    async fn open(&self) -> Result<FloorLocks> {
        let hosts = self.0.trim_start_matches("redlock://").trim_end_matches('/');
        let mut nodes = Vec::new();
        for host in hosts.split(',') {
            let mut connection = connection::open(&format!("redis://{host}/"), &Wakes::default()).await?;
            let acquire = connection::load(&mut connection, ACQUIRE).await?;
            let release = connection::load(&mut connection, RELEASE).await?;
            let mark: String =
                redis::cmd("GET").arg(format!("{NODE}mark")).query_async(&mut connection).await.map_err(failed)?;
            nodes.push(Node { connection, acquire, release, mark: mark.into() });
        }
        Ok(FloorLocks(nodes))
    }
}

#[derive(Clone)]
struct Node {
    connection: MultiplexedConnection,
    acquire: Arc<str>,
    release: Arc<str>,
    mark: Arc<str>,
}

pub(super) struct FloorLocks(Vec<Node>);

pub(super) struct FloorLock {
    nodes: Vec<Node>,
    key: Arc<str>,
    base: Arc<str>,
}

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        let key = format!("floor/{name}");
        FloorLock { nodes: self.0.clone(), base: format!("{{{key}}}:lh2:").into(), key: key.into() }
    }

    async fn renew(&self, _held: &String) -> Result<()> {
        Err(HarnessError::new("the floor does not renew"))
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for FloorLock {
    /// The value.
    type Held = String;

    async fn acquire(&mut self) -> Result<String> {
        let value = format!("{}:{LABEL}", OwnerId::random());
        let floor = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let (key, base, asked) = (&self.key, &self.base, &value);
        let granted = try_join_all(self.nodes.iter_mut().map(|node| async move {
            let mut acquire = redis::cmd("EVALSHA");
            acquire.arg(&*node.acquire).arg(1).arg(&**key).arg(asked).arg(TTL_MS).arg(asked).arg("w");
            acquire.arg(&**base).arg(NODE).arg(&*node.mark).arg(0).arg(floor);
            acquire.query_async::<Value>(&mut node.connection).await
        }));
        for answer in granted.await.map_err(failed)? {
            if !matches!(answer, Value::BulkString(_)) {
                return Err(HarnessError::new(format!("the acquire script answered {answer:?}")));
            }
        }
        Ok(value)
    }

    async fn release(&mut self, value: String) -> Result<()> {
        let (key, value) = (&self.key, &value);
        let released = try_join_all(self.nodes.iter_mut().map(|node| async move {
            let mut release = redis::cmd("EVALSHA");
            release.arg(&*node.release).arg(1).arg(&**key).arg(value);
            release.query_async::<i64>(&mut node.connection).await
        }));
        match released.await.map_err(failed)?.iter().all(|freed| *freed == 1) {
            true => Ok(()),
            false => Err(HarnessError::new("the floor released what it did not hold")),
        }
    }
}

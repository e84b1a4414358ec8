//! The floor: the bare driver with Leasehold's own scripts, five at a time in one task.

use std::{sync::Arc, time::SystemTime};

use futures_util::{FutureExt, StreamExt, future::try_join_all, stream::FuturesUnordered};
use leasehold_core::AcquisitionId;
use leasehold_integration::{HarnessError, Result};
use redis::{Value, aio::MultiplexedConnection};
use tokio::sync::Notify;

use crate::{
    backend::redis::{
        connection::{self, Wakes, failed},
        script,
    },
    scenario::Scenario,
    subject::{FLOOR, Lock, Locks, Source},
};

const ACQUIRE: &str = script!(
    "shared/time",
    "shared/values",
    "shared/tokens",
    "shared/acquisition",
    "shared/waiters",
    "shared/node",
    "quorum_acquire"
);
const RELEASE: &str = script!("shared/values", "release");
const TTL_MS: u64 = 30_000;
/// About as long as Leasehold's default label, which has host, program and process.
const LABEL: &str = "host/floor/1234";
/// The servers' own keys.
const MARK: &str = ":lh4:mark";
const TOP: &str = ":lh4:top";

/// Five acquire scripts at once, then five release scripts at once, each time waiting for all
/// answers. If a majority refuses, the scripts have armed invalidations, and all five are asked
/// again once a majority has reported a change.
///
/// There is no token write-back and no renewal. The floor waits for all answers, not for a
/// majority, and undoes nothing but the grants of a round without a majority.
pub(super) struct Floor(pub(super) String);

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        matches!(scenario, Scenario::Pair | Scenario::Handoff)
    }

    async fn open(&self) -> Result<FloorLocks> {
        let hosts = self
            .0
            .trim_start_matches("redlock://")
            .trim_end_matches('/');
        let mut nodes = Vec::new();
        for host in hosts.split(',') {
            let wakes = Wakes::default();
            let mut connection = connection::open(&format!("redis://{host}/"), &wakes).await?;
            let acquire = connection::load(&mut connection, ACQUIRE).await?;
            let release = connection::load(&mut connection, RELEASE).await?;
            let mark: String = redis::cmd("GET")
                .arg(MARK)
                .query_async(&mut connection)
                .await
                .map_err(failed)?;
            nodes.push(Node {
                connection,
                wakes,
                acquire,
                release,
                mark: mark.into(),
            });
        }
        Ok(FloorLocks(nodes))
    }
}

#[derive(Clone)]
struct Node {
    connection: MultiplexedConnection,
    wakes: Wakes,
    acquire: Arc<str>,
    release: Arc<str>,
    mark: Arc<str>,
}

pub(super) struct FloorLocks(Vec<Node>);

pub(super) struct FloorLock {
    nodes: Vec<Node>,
    /// One for each node.
    changed: Vec<Arc<Notify>>,
    key: Arc<str>,
    /// The fence and the keys of the waiters, in the order of the script.
    others: [Arc<str>; 4],
}

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        let key = format!("floor/{name}");
        let changed = self.0.iter().map(|node| node.wakes.of(&key)).collect();
        FloorLock {
            nodes: self.0.clone(),
            changed,
            others: ["fence", "order", "writers", "waiters"]
                .map(|kind| format!("{{{key}}}:lh2:{kind}").into()),
            key: key.into(),
        }
    }

    async fn renew(&self, _held: &String) -> Result<()> {
        Err(HarnessError::new("the floor does not renew"))
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl FloorLock {
    fn majority(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// Returns the number of nodes that granted the lock.
    async fn take(&mut self, value: &str, options: &[&str]) -> Result<usize> {
        let floor = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_micros() as u64;
        let (key, others) = (&self.key, &self.others);
        let answers = try_join_all(self.nodes.iter_mut().map(|node| async move {
            let mut acquire = redis::cmd("EVALSHA");
            // The marker contains the run of the server.
            let run = node.mark.split(':').nth(1).unwrap_or_default();
            acquire
                .arg(&*node.acquire)
                .arg(2 + 1 + others.len())
                .arg(MARK)
                .arg(TOP)
                .arg(&**key);
            for other in others {
                acquire.arg(&**other);
            }
            acquire
                .arg(&*node.mark)
                .arg(run)
                .arg(0)
                .arg(value)
                .arg(TTL_MS)
                .arg(value)
                .arg(floor)
                .arg(options.len())
                .arg(options);
            acquire.query_async::<Value>(&mut node.connection).await
        }));
        let mut granted = 0;
        for answer in answers.await.map_err(failed)? {
            match answer {
                Value::BulkString(_) => granted += 1,
                Value::Array(answers) if matches!(answers[..], [Value::Array(_)]) => {}
                other => {
                    return Err(HarnessError::new(format!(
                        "the acquire script answered {other:?}"
                    )));
                }
            }
        }
        Ok(granted)
    }

    /// Returns the number of nodes that held the lock.
    async fn give_back(&mut self, value: &str) -> Result<usize> {
        let key = &self.key;
        let released = try_join_all(self.nodes.iter_mut().map(|node| async move {
            let mut release = redis::cmd("EVALSHA");
            release.arg(&*node.release).arg(1).arg(&**key).arg(value);
            release.query_async::<i64>(&mut node.connection).await
        }));
        Ok(released
            .await
            .map_err(failed)?
            .iter()
            .filter(|freed| **freed == 1)
            .count())
    }

    async fn changed_at_a_majority(&self) {
        let bells: FuturesUnordered<_> = self.changed.iter().map(|node| node.notified()).collect();
        bells.take(self.majority()).for_each(async |()| {}).await;
    }
}

impl Lock for FloorLock {
    /// The value.
    type Held = String;

    async fn acquire(&mut self) -> Result<String> {
        let value = format!("{}:{LABEL}", AcquisitionId::random());
        // Notifications of slower nodes, which arrived after a majority.
        for node in &self.changed {
            node.notified().now_or_never();
        }
        let mut options = ["wait"].as_slice();
        loop {
            let granted = self.take(&value, options).await?;
            if granted >= self.majority() {
                return Ok(value);
            }
            if granted > 0 {
                self.give_back(&value).await?;
            }
            self.changed_at_a_majority().await;
            options = &["wait", "registered"];
        }
    }

    async fn release(&mut self, value: String) -> Result<()> {
        if self.give_back(&value).await? >= self.majority() {
            return Ok(());
        }
        Err(HarnessError::new(
            "the floor released a lock that it did not hold",
        ))
    }
}

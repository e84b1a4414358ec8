//! The floor: the bare driver with the standard recipe for ZooKeeper locks.

use leasehold_integration::Result;
use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::{LABEL, connect, failed, parent};
use crate::{
    scenario::Scenario,
    subject::{FLOOR, Lock, Locks, Source},
};

const MOVING: &str = "moving";

/// Leasehold's requests over the bare driver, each sent alone and immediately:
///
/// - an acquisition creates a sequential node and lists the children of its parent;
/// - a waiter watches the node before its own, and considers itself granted when that node ends;
/// - a release deletes the node.
///
/// The created node is not verified, the queue is not read again after a wait, and there is no
/// deadline and no cleanup.
pub(super) struct Floor {
    address: String,
    /// Whether a waiter that is granted replaces its node, in one transaction.
    moves: bool,
}

impl Floor {
    /// Creates the floor to which Leasehold's ratio refers.
    pub(super) fn new(address: String) -> Self {
        let moves = false;
        Self { address, moves }
    }

    /// Creates a variant with the transaction that Leasehold cannot leave out: a waiter with a long
    /// TTL replaces its node by one of another session. Here both nodes are of one session.
    pub(super) fn moving(address: String) -> Self {
        let moves = true;
        Self { address, moves }
    }
}

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        if self.moves { MOVING } else { FLOOR }
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        match scenario {
            Scenario::Handoff | Scenario::HandoffBusy => true,
            // A crowd without a local queue is no floor for a lock with one.
            Scenario::Crowd => false,
            _ => !self.moves,
        }
    }

    async fn open(&self) -> Result<FloorLocks> {
        Ok(FloorLocks {
            client: connect(&self.address).await?,
            moves: self.moves,
        })
    }
}

pub(super) struct FloorLocks {
    client: Client,
    moves: bool,
}

pub(super) struct FloorLock {
    client: Client,
    parent: String,
    moves: bool,
}

/// The path of the node.
pub(super) struct FloorHeld(String);

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        let (client, moves) = (self.client.clone(), self.moves);
        let subject = if moves { MOVING } else { FLOOR };
        FloorLock {
            client,
            parent: parent(subject, name),
            moves,
        }
    }

    /// Does nothing: the driver's pings keep the whole session alive.
    async fn renew(&self, _held: &FloorHeld) -> Result<()> {
        Ok(())
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl FloorLock {
    async fn create(&self) -> Result<String> {
        let prefix = format!("{}/_c_{:032x}-lock-", self.parent, rand::random::<u128>());
        let node = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
        loop {
            match self.client.create(&prefix, LABEL, &node).await {
                Ok((_stat, sequence)) => return Ok(format!("{prefix}{sequence}")),
                Err(Error::NoNode) => {
                    let parent = CreateMode::Container.with_acls(Acls::anyone_all());
                    self.client
                        .mkdir(&self.parent, &parent)
                        .await
                        .map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Replaces a node by another one with the same number. Returns the path of the new one.
    async fn replace(&self, path: &str) -> Result<String> {
        let to = format!(
            "{}/_c_{:032x}-lock-{}",
            self.parent,
            rand::random::<u128>(),
            sequence(path)
        );
        let node = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        let mut writer = self.client.new_multi_writer();
        writer.add_delete(path, None).map_err(failed)?;
        writer.add_create(&to, LABEL, &node).map_err(failed)?;
        let replaced = writer.commit().await;
        replaced.map_err(|error| failed(error.into()))?;
        Ok(to)
    }

    /// Returns the node directly before this one in the queue.
    async fn before(&self, path: &str) -> Result<Option<String>> {
        let children = self
            .client
            .list_children(&self.parent)
            .await
            .map_err(failed)?;
        let own = sequence(path);
        let earlier = children.iter().filter(|child| sequence(child) < own);
        Ok(earlier
            .max_by_key(|child| sequence(child))
            .map(|child| format!("{}/{child}", self.parent)))
    }
}

/// Returns the ten digits of the number, so that text sorts like numbers.
fn sequence(path: &str) -> &str {
    &path[path.len().saturating_sub(10)..]
}

impl Lock for FloorLock {
    type Held = FloorHeld;

    async fn acquire(&mut self) -> Result<FloorHeld> {
        let path = self.create().await?;
        while let Some(before) = self.before(&path).await? {
            let (there, watch) = self
                .client
                .check_and_watch_stat(&before)
                .await
                .map_err(failed)?;
            if there.is_some() {
                // No waiter gives up here, so the node before was the holder's.
                watch.changed().await;
                if self.moves {
                    return Ok(FloorHeld(self.replace(&path).await?));
                }
                break;
            }
        }
        Ok(FloorHeld(path))
    }

    async fn release(&mut self, FloorHeld(path): FloorHeld) -> Result<()> {
        self.client.delete(&path, None).await.map_err(failed)
    }
}

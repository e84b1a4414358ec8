//! The floor: the bare driver with the recipe of all ZooKeeper locks.

use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::{LABEL, connect, failed, parent};
use crate::{
    Result,
    bench::{
        scenario::Scenario,
        subject::{FLOOR, Lock, Locks, Source},
    },
};

/// The same requests over the bare driver, each sent alone and at once:
///
/// - an acquisition creates a sequential node and lists the children of its parent;
/// - who is not the first looks at the one before with a watch, and takes its end for the grant;
/// - a release deletes the node.
///
/// Nothing else: no look at what was created, no deadline, no second look after the wait, nothing
/// for who gives up.
pub(super) struct Floor(pub(super) String);

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        // A crowd without a queue of its own is no floor of one that has it.
        scenario != Scenario::Crowd
    }

    async fn open(&self) -> Result<FloorLocks> {
        Ok(FloorLocks(connect(&self.0).await?))
    }
}

pub(super) struct FloorLocks(Client);

pub(super) struct FloorLock {
    client: Client,
    parent: String,
}

/// The path of the node.
pub(super) struct FloorHeld(String);

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        FloorLock {
            client: self.0.clone(),
            parent: parent(FLOOR, name),
        }
    }

    /// The driver's pings keep all of a session.
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

    /// The node just before this one in the queue.
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

/// Ten digits, so that text is in the order of numbers.
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
                // Nobody gives up here, so the one before was the holder.
                watch.changed().await;
                break;
            }
        }
        Ok(FloorHeld(path))
    }

    async fn release(&mut self, FloorHeld(path): FloorHeld) -> Result<()> {
        self.client.delete(&path, None).await.map_err(failed)
    }
}

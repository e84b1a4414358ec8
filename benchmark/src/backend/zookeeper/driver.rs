//! The lock that the driver itself provides.

use leasehold_integration::Result;
use zookeeper_client::{Acls, Client, CreateMode, LockOptions, LockPrefix};

use super::{LABEL, connect, failed, parent};
use crate::{
    scenario::Scenario,
    subject::{Lock, Locks, Source},
};

const NAME: &str = "driver";

/// `client.lock(LockPrefix::new_curator(..))`, and a delete that is waited for. The driver's own
/// release is not waited for.
pub(super) struct Driver(pub(super) String);

impl Source for Driver {
    type Locks = DriverLocks;

    fn name(&self) -> &'static str {
        NAME
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        scenario != Scenario::Held
    }

    async fn open(&self) -> Result<DriverLocks> {
        Ok(DriverLocks(connect(&self.0).await?))
    }
}

pub(super) struct DriverLocks(Client);

pub(super) struct DriverLock {
    client: Client,
    parent: String,
}

/// The path of the node.
pub(super) struct DriverHeld(String);

impl Locks for DriverLocks {
    type Lock = DriverLock;

    fn lock(&self, name: &str) -> DriverLock {
        DriverLock {
            client: self.0.clone(),
            parent: parent(NAME, name),
        }
    }

    async fn renew(&self, _held: &DriverHeld) -> Result<()> {
        Ok(())
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for DriverLock {
    type Held = DriverHeld;

    async fn acquire(&mut self) -> Result<DriverHeld> {
        let ancestors = CreateMode::Container.with_acls(Acls::anyone_all());
        let options = LockOptions::new(Acls::anyone_all())
            .with_ancestor_options(ancestors)
            .map_err(failed)?;
        let prefix = LockPrefix::new_curator(&self.parent, "lock-").map_err(failed)?;
        let held = self
            .client
            .lock(prefix, LABEL, options)
            .await
            .map_err(failed)?;
        let path = held.lock_path().to_owned();
        // Dropping it would delete the node in the background. It borrows the client, so only a
        // path is leaked.
        std::mem::forget(held);
        Ok(DriverHeld(path))
    }

    async fn release(&mut self, DriverHeld(path): DriverHeld) -> Result<()> {
        self.client.delete(&path, None).await.map_err(failed)
    }
}

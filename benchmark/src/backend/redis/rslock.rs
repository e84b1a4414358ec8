//! Another library: [rslock](https://docs.rs/rslock).

use std::time::Duration;

use leasehold_integration::{HarnessError, Result};
use rslock::{LockGuard, LockManager};

use crate::{
    scenario::Scenario,
    subject::{Lock, Locks, Source},
};

const TTL: Duration = Duration::from_secs(30);

/// The library with its defaults: a waiter sleeps up to 200 ms between two attempts.
pub(super) struct Rslock(pub(super) String);

impl Source for Rslock {
    type Locks = LockManager;

    fn name(&self) -> &'static str {
        "rslock"
    }

    fn period(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        matches!(
            scenario,
            Scenario::Pair | Scenario::Handoff | Scenario::Counter
        )
    }

    async fn open(&self) -> Result<LockManager> {
        Ok(LockManager::new(vec![self.0.clone()]))
    }
}

pub(crate) struct RslockLock {
    manager: LockManager,
    name: String,
}

impl Locks for LockManager {
    type Lock = RslockLock;

    fn lock(&self, name: &str) -> RslockLock {
        RslockLock {
            manager: self.clone(),
            name: format!("rslock/{name}"),
        }
    }

    async fn renew(&self, _held: &LockGuard) -> Result<()> {
        Err(HarnessError::new(
            "`rslock` is not measured with leases that are held",
        ))
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for RslockLock {
    type Held = LockGuard;

    async fn acquire(&mut self) -> Result<LockGuard> {
        let acquired = self.manager.acquire(self.name.as_bytes(), TTL).await;
        acquired.map_err(|error| HarnessError::caused_by("rslock failed", error))
    }

    async fn release(&mut self, held: LockGuard) -> Result<()> {
        held.release().await;
        Ok(())
    }
}

//! Another library: [distributed-lock](https://docs.rs/distributed-lock-redis).

use distributed_lock_core::{
    error::LockError,
    traits::{DistributedLock, LockHandle, LockProvider},
};
use distributed_lock_redis::{RedisDistributedLock, RedisLockHandle, RedisLockProvider};
use leasehold_integration::{HarnessError, Result};

use crate::{
    scenario::Scenario,
    subject::{Lock, Locks, Source},
};

/// The library with its defaults: a TTL of 30 s, renewed every 10 s by a task per lease.
pub(super) struct DistributedLockRedis(pub(super) String);

impl Source for DistributedLockRedis {
    type Locks = RedisLockProvider;

    fn name(&self) -> &'static str {
        "distributed-lock"
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        scenario == Scenario::Pair
    }

    fn excuse(&self, scenario: Scenario) -> Option<&'static str> {
        // 0.2.0, redlock/acquire.rs, acquire_single_client: `Ok(false) => return Ok(None)`.
        matches!(scenario, Scenario::Handoff | Scenario::Counter).then_some(
            "its acquire does not wait: on one server it fails with a timeout at the first refusal, even without a limit",
        )
    }

    async fn open(&self) -> Result<RedisLockProvider> {
        RedisLockProvider::new(&self.0).await.map_err(failed)
    }
}

impl Locks for RedisLockProvider {
    type Lock = RedisDistributedLock;

    fn lock(&self, name: &str) -> RedisDistributedLock {
        self.create_lock(name)
    }

    async fn renew(&self, _held: &RedisLockHandle) -> Result<()> {
        Err(HarnessError::new(
            "`distributed-lock` is not measured with leases that are held",
        ))
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for RedisDistributedLock {
    type Held = RedisLockHandle;

    async fn acquire(&mut self) -> Result<RedisLockHandle> {
        DistributedLock::acquire(self, None).await.map_err(failed)
    }

    async fn release(&mut self, held: RedisLockHandle) -> Result<()> {
        LockHandle::release(held).await.map_err(failed)
    }
}

fn failed(error: LockError) -> HarnessError {
    HarnessError::caused_by("distributed-lock failed", error)
}

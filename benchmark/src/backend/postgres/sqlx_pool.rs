//! Another library: [sqlx](https://docs.rs/sqlx), its advisory lock on a pool.

use leasehold_integration::{HarnessError, Result};
use sqlx::{
    PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgAdvisoryLock, PgAdvisoryLockGuard, PgPoolOptions},
};

use crate::{
    scenario::Scenario,
    subject::{Lock, Locks, Source},
};

/// The number of connections in the pool.
const CONNECTIONS: u32 = 16;

/// `PgAdvisoryLock` on a pool of 16, with a connection for each lock that is held or waited for. It
/// has no fencing tokens and no leases.
pub(super) struct SqlxPool(pub(super) String);

impl Source for SqlxPool {
    type Locks = PgPool;

    fn name(&self) -> &'static str {
        "sqlx-pool"
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        matches!(
            scenario,
            Scenario::Pair | Scenario::Handoff | Scenario::Counter
        )
    }

    async fn open(&self) -> Result<PgPool> {
        let options = PgPoolOptions::new()
            .min_connections(CONNECTIONS)
            .max_connections(CONNECTIONS);
        options.connect(&self.0).await.map_err(failed)
    }
}

pub(crate) struct PoolLock {
    pool: PgPool,
    lock: PgAdvisoryLock,
}

/// The guard borrows the lock, but the benchmark stores both separately.
pub(crate) struct Held(PgAdvisoryLockGuard<PoolConnection<Postgres>>);

impl Locks for PgPool {
    type Lock = PoolLock;

    fn lock(&self, name: &str) -> PoolLock {
        PoolLock {
            pool: self.clone(),
            lock: PgAdvisoryLock::new(format!("sqlx/{name}")),
        }
    }

    async fn renew(&self, _held: &Held) -> Result<()> {
        Err(HarnessError::new(
            "`sqlx-pool` is not measured with leases that are held",
        ))
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        PgPool::close(&self).await;
        Ok(())
    }
}

impl Lock for PoolLock {
    type Held = Held;

    async fn acquire(&mut self) -> Result<Held> {
        let connection = self.pool.acquire().await.map_err(failed)?;
        self.lock
            .acquire(connection)
            .await
            .map(Held)
            .map_err(failed)
    }

    async fn release(&mut self, Held(guard): Held) -> Result<()> {
        guard.release_now().await.map(drop).map_err(failed)
    }
}

fn failed(error: sqlx::Error) -> HarnessError {
    HarnessError::caused_by("sqlx failed", error)
}

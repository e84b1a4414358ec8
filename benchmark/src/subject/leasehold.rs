//! [`Leasehold`]: the library with its defaults.

use std::sync::Arc;

use leasehold_core::{All, AllGuard, LockClient, LockGuard, Mutex, Released, backend::BoxFuture};
use leasehold_integration::{HarnessError, Result};

use super::{LEASEHOLD, Lock, Locks, Source, Subject};
use crate::scenario::Scenario;

type Open = dyn Fn() -> BoxFuture<'static, leasehold_core::Result<LockClient>> + Send + Sync;

/// A [`LockClient`] with the defaults of the library.
#[derive(Clone)]
pub(crate) struct Leasehold(Arc<Open>);

impl Leasehold {
    pub(crate) fn new<F>(open: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = leasehold_core::Result<LockClient>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(open())))
    }
}

impl Source for Leasehold {
    type Locks = LockClient;

    fn name(&self) -> &'static str {
        LEASEHOLD
    }

    fn takes_part(&self, _scenario: Scenario) -> bool {
        true
    }

    fn together(&self, keys: usize) -> Option<Box<dyn Subject>> {
        Some(Box::new(Together {
            leasehold: self.clone(),
            keys,
        }))
    }

    async fn open(&self) -> Result<LockClient> {
        (self.0)().await.map_err(failed)
    }
}

impl Locks for LockClient {
    type Lock = Mutex;

    fn lock(&self, name: &str) -> Mutex {
        self.mutex(name)
    }

    async fn renew(&self, _held: &LockGuard) -> Result<()> {
        Ok(())
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        LockClient::close(&self).await.map_err(failed)
    }
}

impl Lock for Mutex {
    type Held = LockGuard;

    async fn acquire(&mut self) -> Result<LockGuard> {
        Mutex::lock(self).await.map_err(failed)
    }

    async fn release(&mut self, held: LockGuard) -> Result<()> {
        freed(held.release().await.map_err(failed)?)
    }
}

/// Several keys under one guard.
struct Together {
    leasehold: Leasehold,
    keys: usize,
}

impl Source for Together {
    type Locks = TogetherLocks;

    fn name(&self) -> &'static str {
        LEASEHOLD
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        scenario == Scenario::All
    }

    async fn open(&self) -> Result<TogetherLocks> {
        let client = Source::open(&self.leasehold).await?;
        Ok(TogetherLocks {
            client,
            keys: self.keys,
        })
    }
}

struct TogetherLocks {
    client: LockClient,
    keys: usize,
}

impl Locks for TogetherLocks {
    type Lock = All;

    fn lock(&self, name: &str) -> All {
        let keys = (0..self.keys).map(|key| format!("{name}/{key}"));
        self.client.all(keys)
    }

    async fn renew(&self, _held: &AllGuard) -> Result<()> {
        Ok(())
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        LockClient::close(&self.client).await.map_err(failed)
    }
}

impl Lock for All {
    type Held = AllGuard;

    async fn acquire(&mut self) -> Result<AllGuard> {
        All::lock(self).await.map_err(failed)
    }

    async fn release(&mut self, held: AllGuard) -> Result<()> {
        let released = held.release().await.map_err(failed)?;
        released
            .into_iter()
            .try_for_each(|(_, outcome)| freed(outcome))
    }
}

fn freed(released: Released) -> Result<()> {
    match released {
        Released::Freed => Ok(()),
        other => Err(HarnessError::new(format!(
            "unexpected outcome of a release: {other:?}"
        ))),
    }
}

fn failed(error: leasehold_core::Error) -> HarnessError {
    HarnessError::caused_by("leasehold failed", error)
}

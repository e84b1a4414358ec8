//! [`Leasehold`]: the library with its defaults.

use std::sync::Arc;

use leasehold_core::{LockClient, LockGuard, Mutex, backend::BoxFuture};
use leasehold_integration::{HarnessError, Result};

use super::{LEASEHOLD, Lock, Locks, Source};
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
        match held.release().await {
            Ok(leasehold_core::Released::Freed) => Ok(()),
            Ok(other) => Err(HarnessError::new(format!(
                "unexpected outcome of a release: {other:?}"
            ))),
            Err(error) => Err(failed(error)),
        }
    }
}

fn failed(error: leasehold_core::Error) -> HarnessError {
    HarnessError::caused_by("leasehold failed", error)
}

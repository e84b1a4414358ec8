//! [`Semaphore`]: a bounded number of holders.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use crate::{
    acquire::acquire,
    client::Client,
    error::{Error, ErrorKind, Result},
    guard::LockGuard,
    mode::Mode,
    options::{Spec, Wait, lock_options},
    run::run_methods,
};

/// A bounded number of holders, made by [`LockClient::semaphore`](crate::LockClient::semaphore).
///
/// Permits have no fencing tokens: several holders are right at a time. Cancel safety is that of
/// [`Mutex::lock`](crate::Mutex::lock).
#[derive(Clone, Debug)]
pub struct Semaphore {
    client: Arc<Client>,
    spec: Spec,
    permits: u32,
}

impl Semaphore {
    pub(crate) fn new(client: Arc<Client>, mut spec: Spec, permits: u32) -> Self {
        if let Some(of) = NonZeroU32::new(permits) {
            spec.mode = Mode::Permit { of };
        }
        Self {
            client,
            spec,
            permits,
        }
    }

    lock_options!();

    /// Waits for a permit.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock); [`Mismatch`](crate::ErrorKind::Mismatch) if others
    /// hold permits of another number, [`Unsupported`](crate::ErrorKind::Unsupported) where the
    /// backend has no permits.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn acquire(&self) -> Result<LockGuard> {
        self.permit(self.spec.wait).await
    }

    /// One attempt.
    ///
    /// # Errors
    /// [`Contended`](crate::ErrorKind::Contended) if no permit is free; otherwise as
    /// [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn try_acquire(&self) -> Result<LockGuard> {
        self.permit(Wait::No).await
    }

    /// Waits for a permit for at most this long. Zero is one attempt.
    ///
    /// # Errors
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout); otherwise as
    /// [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn acquire_timeout(&self, limit: Duration) -> Result<LockGuard> {
        self.permit(Wait::AtMost(limit)).await
    }

    run_methods!(acquire);

    async fn permit(&self, wait: Wait) -> Result<LockGuard> {
        if self.permits == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a semaphore of 0 permits grants nothing; give it at least one",
            ));
        }
        acquire(&self.client, &self.spec, wait).await
    }
}

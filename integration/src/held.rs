//! [`Held`]: a held lock of any mode.

use std::time::Duration;

use leasehold_core::{
    Deadline, FencingToken, LockGuard, LockKey, Released, Result, SemaphorePermit, Ttl,
};

/// A guard of a lock or a semaphore permit.
#[derive(Debug)]
pub enum Held {
    /// A guard of a mutex or a read-write lock.
    Lock(LockGuard),
    /// A permit of a semaphore.
    Permit(SemaphorePermit),
}

impl Held {
    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &LockKey {
        match self {
            Self::Lock(guard) => guard.key(),
            Self::Permit(permit) => permit.key(),
        }
    }

    /// Returns the TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        match self {
            Self::Lock(guard) => guard.ttl(),
            Self::Permit(permit) => permit.ttl(),
        }
    }

    /// Returns the deadline.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        match self {
            Self::Lock(guard) => guard.deadline(),
            Self::Permit(permit) => permit.deadline(),
        }
    }

    /// Returns whether it is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match self {
            Self::Lock(guard) => guard.is_held(),
            Self::Permit(permit) => permit.is_held(),
        }
    }

    /// Returns the token; `None` for a permit.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        match self {
            Self::Lock(guard) => guard.fencing_token(),
            Self::Permit(_) => None,
        }
    }

    /// Returns the time until its deadline.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match self {
            Self::Lock(guard) => guard.remaining(),
            Self::Permit(permit) => permit.remaining(),
        }
    }

    /// Renews it.
    ///
    /// # Errors
    /// As the guard's renewal.
    pub async fn renew(&self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.renew().await,
            Self::Permit(permit) => permit.renew().await,
        }
    }

    /// Releases it.
    ///
    /// # Errors
    /// As the guard's release.
    pub async fn release(self) -> Result<Released> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Permit(permit) => permit.release().await,
        }
    }
}

impl From<LockGuard> for Held {
    fn from(guard: LockGuard) -> Self {
        Self::Lock(guard)
    }
}

impl From<SemaphorePermit> for Held {
    fn from(permit: SemaphorePermit) -> Self {
        Self::Permit(permit)
    }
}

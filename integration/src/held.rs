//! [`Held`]: a held lock of any mode. [`HeldMode`]: the modes.

use std::time::Duration;

use leasehold_core::{
    Deadline, FencingToken, LockClient, LockGuard, LockKey, Released, Result, SemaphorePermit,
    Term, Ttl,
};

use crate::worker::{Command, Patience};

/// A guard of a lock, a semaphore permit, or a term of an election.
#[derive(Debug)]
pub enum Held {
    /// A guard of a mutex or a read-write lock.
    Lock(LockGuard),
    /// A permit of a semaphore.
    Permit(SemaphorePermit),
    /// A term of an election.
    Term(Term),
}

impl Held {
    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &LockKey {
        match self {
            Self::Lock(guard) => guard.key(),
            Self::Permit(permit) => permit.key(),
            Self::Term(term) => term.key(),
        }
    }

    /// Returns the TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        match self {
            Self::Lock(guard) => guard.ttl(),
            Self::Permit(permit) => permit.ttl(),
            Self::Term(term) => term.ttl(),
        }
    }

    /// Returns the deadline.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        match self {
            Self::Lock(guard) => guard.deadline(),
            Self::Permit(permit) => permit.deadline(),
            Self::Term(term) => term.deadline(),
        }
    }

    /// Returns whether it is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match self {
            Self::Lock(guard) => guard.is_held(),
            Self::Permit(permit) => permit.is_held(),
            Self::Term(term) => term.is_held(),
        }
    }

    /// Returns the token; `None` for a permit.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        match self {
            Self::Lock(guard) => guard.fencing_token(),
            Self::Permit(_) => None,
            Self::Term(term) => term.fencing_token(),
        }
    }

    /// Returns the time until its deadline.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match self {
            Self::Lock(guard) => guard.remaining(),
            Self::Permit(permit) => permit.remaining(),
            Self::Term(term) => term.remaining(),
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
            Self::Term(term) => term.renew().await,
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
            Self::Term(term) => term.resign().await,
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

impl From<Term> for Held {
    fn from(term: Term) -> Self {
        Self::Term(term)
    }
}

/// A mode in which a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldMode {
    /// The only holder.
    Writer,
    /// One of several readers.
    Reader,
    /// The only permit.
    Permit,
}

impl HeldMode {
    /// Returns the modes that the backend of this client has.
    #[must_use]
    pub fn all(client: &LockClient) -> Vec<Self> {
        let permits = client.capabilities().permits.then_some(Self::Permit);
        [Self::Writer, Self::Reader]
            .into_iter()
            .chain(permits)
            .collect()
    }

    /// Returns a mode that excludes this one.
    #[must_use]
    pub fn rival(self) -> Self {
        match self {
            Self::Writer | Self::Reader => Self::Writer,
            Self::Permit => Self::Permit,
        }
    }

    /// Returns the command that makes a worker acquire the lock `k` into slot 0.
    #[must_use]
    pub fn command(self, patience: Patience) -> Command {
        let (slot, key) = (0, "k".to_owned());
        match self {
            Self::Writer => Command::Lock {
                slot,
                key,
                patience,
            },
            Self::Reader => Command::Read {
                slot,
                key,
                patience,
            },
            Self::Permit => Command::Permit {
                slot,
                key,
                patience,
            },
        }
    }

    /// Waits for a lock with the client's default TTL.
    ///
    /// # Errors
    /// As the lock fails.
    pub async fn lock(self, client: &LockClient, key: &str) -> Result<Held> {
        Ok(match self {
            Self::Writer => client.rwlock(key).write().await?.into(),
            Self::Reader => client.rwlock(key).read().await?.into(),
            Self::Permit => client.semaphore(key, 1).acquire().await?.into(),
        })
    }

    /// Waits for at most `limit`.
    ///
    /// # Errors
    /// As the lock fails.
    pub async fn lock_timeout(
        self,
        client: &LockClient,
        key: &str,
        limit: Duration,
    ) -> Result<Option<Held>> {
        Ok(match self {
            Self::Writer => client
                .rwlock(key)
                .write_timeout(limit)
                .await?
                .map(Held::from),
            Self::Reader => client
                .rwlock(key)
                .read_timeout(limit)
                .await?
                .map(Held::from),
            Self::Permit => client
                .semaphore(key, 1)
                .acquire_timeout(limit)
                .await?
                .map(Held::from),
        })
    }
}

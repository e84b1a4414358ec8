//! [`Mutex`]: one holder at a time.

use std::{sync::Arc, time::Duration};

use crate::{
    acquire::acquire,
    client::Client,
    error::Result,
    guard::LockGuard,
    options::{Spec, Wait, lock_options},
    run::run_methods,
};

/// A lock with one holder at a time, made by [`LockClient::mutex`](crate::LockClient::mutex).
/// Nothing is sent until it is locked, and locking it needs no `&mut`: clone and share it as you
/// like.
#[derive(Clone, Debug)]
pub struct Mutex {
    client: Arc<Client>,
    spec: Spec,
}

impl Mutex {
    pub(crate) fn new(client: Arc<Client>, spec: Spec) -> Self {
        Self { client, spec }
    }

    lock_options!();

    /// Waits for the lock, for as long as [`with_wait`](Self::with_wait) says; without it, as long
    /// as it takes.
    ///
    /// Within this client, first come, first served. It is not re-entrant: a task that locks the
    /// same name again waits for itself; see [`Owner`](crate::Owner).
    ///
    /// # While the backend fails
    /// A fault that may pass, such as a broken connection, is retried. This holds for the first
    /// attempt as for any later one. The wait ends with the fault one TTL after the first fault
    /// since the backend last answered, or when its limit is over.
    ///
    /// # Errors
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for the name or the TTL.
    /// - [`Contended`](crate::ErrorKind::Contended) if only one attempt was asked for, and another
    ///   holds the lock.
    /// - [`TimedOut`](crate::ErrorKind::TimedOut) if the limit of the wait is over, and another
    ///   held the lock during the wait.
    /// - [`Unavailable`](crate::ErrorKind::Unavailable) if the limit is over and the backend did
    ///   not say that another holds the lock. Its [`source`](std::error::Error::source) is the last
    ///   fault, if there was one.
    /// - The fault, if the backend fails for longer, or in a way that cannot pass.
    ///
    /// # Cancel safety
    /// Safe: dropping the future leaves the queue, and what was granted meanwhile is released in
    /// the background.
    pub async fn lock(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec, self.spec.wait).await
    }

    /// One attempt.
    ///
    /// A process that has taken the lock several times in a row is refused if it sees that another
    /// waits, so that a loop of tries starves nobody.
    ///
    /// # Errors
    /// [`Contended`](crate::ErrorKind::Contended) if another holds it, or waits and goes first;
    /// otherwise as [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec, Wait::No).await
    }

    /// Waits for the lock for at most this long. Zero is one attempt.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). When the time is over: [`TimedOut`](crate::ErrorKind::TimedOut) if
    /// another held the lock, [`Unavailable`](crate::ErrorKind::Unavailable) if the backend did not
    /// answer.
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn lock_timeout(&self, limit: Duration) -> Result<LockGuard> {
        acquire(&self.client, &self.spec, Wait::AtMost(limit)).await
    }

    run_methods!(lock);
}

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

/// A lock with one holder at a time, made by [`LockClient::mutex`](crate::LockClient::mutex). Nothing is sent until it is
/// locked, and locking it needs no `&mut`: clone and share it as you like.
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

    /// Waits for the lock, for as long as [`with_wait`](Self::with_wait) says; without it, as long as it takes.
    ///
    /// Within this client, first come, first served. It is not re-entrant: a task that locks the same name again waits for
    /// itself; see [`Owner`](crate::Owner).
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for the name or the TTL,
    /// [`TimedOut`](crate::ErrorKind::TimedOut) or [`Contended`](crate::ErrorKind::Contended) as the wait says, and as the
    /// backend fails. A backend that fails while we wait is given a TTL to come back.
    ///
    /// # Cancel safety
    /// Safe: dropping the future leaves the queue, and what was granted meanwhile is released in the background.
    pub async fn lock(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec, self.spec.wait).await
    }

    /// One attempt.
    ///
    /// # Errors
    /// [`Contended`](crate::ErrorKind::Contended) if another holds it; otherwise as [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec, Wait::No).await
    }

    /// Waits for the lock for at most this long. Zero is one attempt.
    ///
    /// # Errors
    /// [`TimedOut`](crate::ErrorKind::TimedOut) when the time is over; otherwise as [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn lock_within(&self, limit: Duration) -> Result<LockGuard> {
        acquire(&self.client, &self.spec, Wait::AtMost(limit)).await
    }

    run_methods!(lock);
}

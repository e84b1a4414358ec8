//! [`RwLock`]: many readers or one writer.

use std::{sync::Arc, time::Duration};

use crate::{
    acquire::acquire,
    client::Client,
    error::Result,
    guard::LockGuard,
    mode::Mode,
    options::{Spec, Wait, lock_options},
};

/// A lock with many readers or one writer, made by
/// [`LockClient::rwlock`](crate::LockClient::rwlock).
///
/// No reader that comes later overtakes a writer that waits. A read lock cannot be turned into a
/// write lock: release it and write-lock, and look again at what you read. Cancel safety is that of
/// [`Mutex::lock`](crate::Mutex::lock).
#[derive(Clone, Debug)]
pub struct RwLock {
    client: Arc<Client>,
    spec: Spec,
}

impl RwLock {
    pub(crate) fn new(client: Arc<Client>, spec: Spec) -> Self {
        Self { client, spec }
    }

    lock_options!();

    /// Waits to read.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock); [`Unsupported`](crate::ErrorKind::Unsupported) where
    /// the backend has no shared mode.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&self) -> Result<LockGuard> {
        self.acquire(Mode::Shared, self.spec.wait).await
    }

    /// One attempt to read.
    ///
    /// # Errors
    /// [`Contended`](crate::ErrorKind::Contended) if it cannot be read now; otherwise as
    /// [`read`](Self::read).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn try_read(&self) -> Result<LockGuard> {
        self.acquire(Mode::Shared, Wait::No).await
    }

    /// Waits to read for at most this long. Zero is one attempt.
    ///
    /// # Errors
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout); otherwise as [`read`](Self::read).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read_timeout(&self, limit: Duration) -> Result<LockGuard> {
        self.acquire(Mode::Shared, Wait::AtMost(limit)).await
    }

    /// Waits to write.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn write(&self) -> Result<LockGuard> {
        self.acquire(Mode::Exclusive, self.spec.wait).await
    }

    /// One attempt to write.
    ///
    /// # Errors
    /// [`Contended`](crate::ErrorKind::Contended) if it cannot be written now; otherwise as
    /// [`write`](Self::write).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn try_write(&self) -> Result<LockGuard> {
        self.acquire(Mode::Exclusive, Wait::No).await
    }

    /// Waits to write for at most this long. Zero is one attempt.
    ///
    /// # Errors
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout); otherwise as [`write`](Self::write).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn write_timeout(&self, limit: Duration) -> Result<LockGuard> {
        self.acquire(Mode::Exclusive, Wait::AtMost(limit)).await
    }

    async fn acquire(&self, mode: Mode, wait: Wait) -> Result<LockGuard> {
        let spec = Spec {
            mode,
            ..self.spec.clone()
        };
        acquire(&self.client, &spec, wait).await
    }
}

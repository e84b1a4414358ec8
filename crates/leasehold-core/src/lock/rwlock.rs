//! [`RwLock`]: a lock with many readers or one writer.

use std::{sync::Arc, time::Duration};

use crate::{
    client::{
        acquire::{acquire, acquire_for, try_acquire},
        engine::{Client, Spec},
        handle::LockClient,
    },
    error::{Error, Result},
    key::LockKey,
    lock::{guard::LockGuard, options::lock_options, run::run_methods},
    mode::Mode,
};

/// A lock with many readers or one writer, created by
/// [`LockClient::rwlock`](crate::LockClient::rwlock).
///
/// A later reader does not overtake a waiting writer. A read lock cannot be upgraded to a write
/// lock: release it, acquire the write lock, and read again the data on which the decision was
/// based.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let prices = client.rwlock("price list");
/// let one = prices.read().await?;
/// let two = prices.read().await?;
/// assert!(prices.try_write().await?.is_none());
/// # drop((one, two));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RwLock {
    client: Arc<Client>,
    spec: Spec,
}

impl LockClient {
    /// Creates a handle for the read-write lock named `key`.
    ///
    /// Its write lock is the same lock as the [`mutex`](Self::mutex) with this key.
    pub fn rwlock<K>(&self, key: K) -> RwLock
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        RwLock::new(Arc::clone(&self.0), self.spec(key, Mode::Exclusive))
    }
}

impl RwLock {
    pub(crate) fn new(client: Arc<Client>, spec: Spec) -> Self {
        Self { client, spec }
    }

    lock_options!();

    /// Waits until a read lock is acquired.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock). Also [`Unsupported`](crate::ErrorKind::Unsupported)
    /// if the backend has no shared mode.
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn read(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec_of(Mode::Shared))
            .await
            .map(LockGuard::new)
    }

    /// Makes one attempt to acquire a read lock. Returns `None` if a writer holds the lock or waits
    /// for it.
    ///
    /// # Errors
    /// As [`Mutex::try_lock`](crate::Mutex::try_lock) and [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn try_read(&self) -> Result<Option<LockGuard>> {
        Ok(try_acquire(&self.client, &self.spec_of(Mode::Shared))
            .await?
            .map(LockGuard::new))
    }

    /// Waits for a read lock for at most `timeout`. Returns `None` if writers held the lock until
    /// then.
    ///
    /// # Errors
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout) and [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn read_timeout(&self, timeout: Duration) -> Result<Option<LockGuard>> {
        Ok(
            acquire_for(&self.client, &self.spec_of(Mode::Shared), timeout)
                .await?
                .map(LockGuard::new),
        )
    }

    /// Waits until the write lock is acquired.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn write(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec).await.map(LockGuard::new)
    }

    /// Makes one attempt to acquire the write lock. Returns `None` if another holder has the lock,
    /// or if an earlier waiter is served first.
    ///
    /// # Errors
    /// As [`Mutex::try_lock`](crate::Mutex::try_lock).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn try_write(&self) -> Result<Option<LockGuard>> {
        Ok(try_acquire(&self.client, &self.spec)
            .await?
            .map(LockGuard::new))
    }

    /// Waits for the write lock for at most `timeout`. Returns `None` if other holders had the lock
    /// until then.
    ///
    /// # Errors
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn write_timeout(&self, timeout: Duration) -> Result<Option<LockGuard>> {
        Ok(acquire_for(&self.client, &self.spec, timeout)
            .await?
            .map(LockGuard::new))
    }

    run_methods!(read, run_read, run_read_with, try_run_read; LockGuard, LeaseInfo, "mutex(\"sum\")");
    run_methods!(write, run_write, run_write_with, try_run_write; LockGuard, LeaseInfo, "mutex(\"sum\")");

    fn spec_of(&self, mode: Mode) -> Spec {
        Spec {
            mode,
            ..self.spec.clone()
        }
    }
}

//! [`Mutex`]: a lock with one holder at a time.

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

/// A lock with one holder at a time, created by [`LockClient::mutex`](crate::LockClient::mutex).
///
/// Nothing is sent until it is locked. Locking takes `&self`, so a mutex can be cloned and shared
/// freely. Use an [`RwLock`](crate::RwLock) if readers may share the lock, and a
/// [`Semaphore`](crate::Semaphore) for a bounded number of holders.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use std::time::Duration;
///
/// let mutex = client.mutex("item/42").with_ttl(Duration::from_secs(10));
/// let guard = mutex.lock().await?;
///
/// // The lock is held. This is an outcome, not an error.
/// assert!(mutex.try_lock().await?.is_none());
/// assert!(mutex.lock_timeout(Duration::from_millis(10)).await?.is_none());
///
/// guard.release().await?;
/// assert!(mutex.try_lock().await?.is_some());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Mutex {
    client: Arc<Client>,
    spec: Spec,
}

impl LockClient {
    /// Creates a handle for the mutex named `key`.
    ///
    /// Nothing is sent until it is locked. An invalid key is reported then.
    pub fn mutex<K>(&self, key: K) -> Mutex
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        Mutex::new(Arc::clone(&self.0), self.spec(key, Mode::Exclusive))
    }
}

impl Mutex {
    pub(crate) fn new(client: Arc<Client>, spec: Spec) -> Self {
        Self { client, spec }
    }

    lock_options!();

    /// Waits until the lock is acquired.
    ///
    /// Waiters of the same client are served first come, first served. The lock is not re-entrant:
    /// a task that locks the same key again waits for itself. See
    /// [`ReentrantOwner`](crate::ReentrantOwner) for re-entrant locks.
    ///
    /// # While the backend fails
    /// A transient error, such as a broken connection, is retried, also in the first attempt. The
    /// wait ends with the error if the backend has failed for one TTL without an answer.
    ///
    /// # Errors
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid key or TTL.
    /// - The error of the backend, if it fails for longer than a TTL, or if the error is not
    ///   [retryable](crate::Error::is_retryable).
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped, the task leaves the queue, and a lock that was granted
    /// meanwhile is released in the background.
    pub async fn lock(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec).await.map(LockGuard::new)
    }

    /// Makes one attempt to acquire the lock. Returns `None` if another holder has it, or if an
    /// earlier waiter is served first.
    ///
    /// A process that has used up its quota of grants for the key is refused while another process
    /// waits, so that a loop of attempts starves no waiter.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). A transient error is not retried.
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<Option<LockGuard>> {
        Ok(try_acquire(&self.client, &self.spec)
            .await?
            .map(LockGuard::new))
    }

    /// Waits for the lock for at most `timeout`. Returns `None` if another holder had it until
    /// then.
    ///
    /// A timeout of zero makes one attempt.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). Also [`Unavailable`](crate::ErrorKind::Unavailable) if the timeout
    /// elapses and the backend has not answered that the lock is held. Its
    /// [`source`](std::error::Error::source) is the last error of the backend, if there was one.
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn lock_timeout(&self, timeout: Duration) -> Result<Option<LockGuard>> {
        Ok(acquire_for(&self.client, &self.spec, timeout)
            .await?
            .map(LockGuard::new))
    }

    run_methods!(lock, run, run_with, try_run; LockGuard, LeaseInfo, "mutex(\"sum\")");
}

//! [`Mutex`]: one holder at a time.

use std::{sync::Arc, time::Duration};

use crate::{
    client::{
        acquire::{acquire, acquire_for, try_acquire},
        engine::Client,
        handle::LockClient,
        spec::Spec,
    },
    error::{Error, Result},
    key::LockKey,
    lock::{guard::LockGuard, options::lock_options, run::run_methods},
    mode::Mode,
};

/// A lock with one holder at a time, created by [`LockClient::mutex`](crate::LockClient::mutex).
///
/// Nothing is sent until it is locked. Locking needs no `&mut`: clone and share it freely.
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
/// // Another holds it: this is an outcome, not an error.
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
    /// The lock of this name. Nothing is sent until it is locked; an invalid name is an error then.
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

    /// Waits for the lock for as long as it takes.
    ///
    /// Waiters of the same client are served in the order in which they came. The lock is not
    /// re-entrant: a task that locks the same name again waits for itself; see
    /// [`ReentrantOwner`](crate::ReentrantOwner).
    ///
    /// # While the backend fails
    /// A fault that may pass, such as a broken connection, is retried. This holds for the first
    /// attempt as for any later one. The wait ends with the fault one TTL after the first fault
    /// since the backend last answered.
    ///
    /// # Errors
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for the name or the TTL.
    /// - The fault, if the backend fails for longer than a TTL, or in a way that cannot pass.
    ///
    /// # Cancel safety
    /// Safe: a dropped future leaves the queue, and what was granted meanwhile is released in the
    /// background.
    pub async fn lock(&self) -> Result<LockGuard> {
        acquire(&self.client, &self.spec).await.map(LockGuard::new)
    }

    /// Makes one attempt, and returns `None` if another holds the lock, or waits and goes first.
    ///
    /// A process that has taken the lock several times in a row is refused if it sees that another
    /// waits, so that a loop of attempts starves nobody.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). A fault is not retried.
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<Option<LockGuard>> {
        Ok(try_acquire(&self.client, &self.spec)
            .await?
            .map(LockGuard::new))
    }

    /// Waits for the lock for at most `timeout`, and returns `None` if another held it until then.
    ///
    /// A timeout of zero makes one attempt.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). Also [`Unavailable`](crate::ErrorKind::Unavailable) if the timeout
    /// is over and the backend has not said that another holds the lock. Its
    /// [`source`](std::error::Error::source) is the last fault, if there was one.
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn lock_timeout(&self, timeout: Duration) -> Result<Option<LockGuard>> {
        Ok(acquire_for(&self.client, &self.spec, timeout)
            .await?
            .map(LockGuard::new))
    }

    run_methods!(lock, run, run_with, try_run);
}

//! [`Semaphore`]: a lock with a bounded number of holders.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use crate::{
    client::{
        acquire::{acquire, acquire_for, try_acquire},
        engine::{Client, Spec},
        handle::LockClient,
    },
    error::{Error, ErrorKind, Result},
    key::LockKey,
    lock::{guard::SemaphorePermit, options::lock_options, run::run_methods},
    mode::Mode,
};

/// A lock with a bounded number of holders, created by
/// [`LockClient::semaphore`](crate::LockClient::semaphore).
///
/// Permits have no fencing tokens, because several holders are valid at a time.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let gpus = client.semaphore("gpu", 2);
/// let one = gpus.acquire().await?;
/// let two = gpus.acquire().await?;
/// assert!(gpus.try_acquire().await?.is_none());
/// # drop((one, two));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Semaphore {
    client: Arc<Client>,
    spec: Spec,
    permits: u32,
}

impl LockClient {
    /// Creates a handle for the semaphore named `key`, with this number of permits.
    ///
    /// All users of the semaphore must pass the same number. While permits are held, acquiring with
    /// another number fails with [`ErrorKind::Conflict`]. Acquiring from a semaphore of zero
    /// permits fails with [`ErrorKind::InvalidInput`].
    pub fn semaphore<K>(&self, key: K, permits: u32) -> Semaphore
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        Semaphore::new(
            Arc::clone(&self.0),
            self.spec(key, Mode::Exclusive),
            permits,
        )
    }
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

    /// Waits until a permit is acquired.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock). Also:
    ///
    /// - [`Conflict`](crate::ErrorKind::Conflict) if permits are held of a semaphore with the same
    ///   key and another number of permits.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) if the backend has no permits.
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn acquire(&self) -> Result<SemaphorePermit> {
        self.check_permits()?;
        acquire(&self.client, &self.spec)
            .await
            .map(SemaphorePermit::new)
    }

    /// Makes one attempt to acquire a permit. Returns `None` if no permit is free.
    ///
    /// # Errors
    /// As [`Mutex::try_lock`](crate::Mutex::try_lock) and [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn try_acquire(&self) -> Result<Option<SemaphorePermit>> {
        self.check_permits()?;
        Ok(try_acquire(&self.client, &self.spec)
            .await?
            .map(SemaphorePermit::new))
    }

    /// Waits for a permit for at most `timeout`. Returns `None` if all permits were held until
    /// then.
    ///
    /// # Errors
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout) and [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn acquire_timeout(&self, timeout: Duration) -> Result<Option<SemaphorePermit>> {
        self.check_permits()?;
        Ok(acquire_for(&self.client, &self.spec, timeout)
            .await?
            .map(SemaphorePermit::new))
    }

    run_methods!(acquire, run, run_with, try_run; SemaphorePermit, LeaseInfo, "mutex(\"sum\")");

    fn check_permits(&self) -> Result<()> {
        if self.permits == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a semaphore of 0 permits cannot be acquired; use at least 1",
            ));
        }
        Ok(())
    }
}

//! [`ReentrantOwner`]: a scope in which locks are re-entrant.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    client::handle::LockClient,
    error::{Error, Result},
    key::LockKey,
    lease::{held_lease::HeldLease, release::OwnedLease},
    lock::guard::{LeaseInfo, LockGuard},
    ttl::Ttl,
};

/// A re-entrancy scope, created by [`LockClient::reentrant_owner`]. A key that the owner holds can
/// be locked again through the same owner without waiting.
///
/// The owner is an object because an async task has no thread identity. Clones are the same owner:
/// pass the owner, or a clone, to all code that shares its locks. Another owner in the same process
/// waits, as another process does.
///
/// All guards of a key share one lease, with one token and one deadline. Only the last release
/// frees the key; earlier releases return [`Released::StillHeld`](crate::Released::StillHeld).
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Released;
///
/// let owner = client.reentrant_owner();
/// let outer = owner.lock("item/42").await?;
/// let inner = owner.lock("item/42").await?; // does not wait
/// assert_eq!(inner.release().await?, Released::StillHeld);
/// assert_eq!(outer.release().await?, Released::Freed);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ReentrantOwner {
    client: LockClient,
    ttl: Option<Result<Ttl>>,
    slots: Arc<Mutex<Slots>>,
}

/// The keys of an owner.
#[derive(Debug, Default)]
struct Slots {
    by_key: HashMap<LockKey, Arc<Slot>>,
    /// The number of keys at which unused slots are removed.
    sweep_at: usize,
    /// The number of slots that all sweeps have visited.
    #[cfg(test)]
    swept: usize,
}

/// Unused slots are not removed while there are fewer than this.
const MIN_SWEEP: usize = 16;

impl Slots {
    fn of(&mut self, key: &LockKey) -> Arc<Slot> {
        if let Some(slot) = self.by_key.get(key) {
            return Arc::clone(slot);
        }
        if self.by_key.len() >= self.sweep_at {
            self.sweep();
        }
        Arc::clone(self.by_key.entry(key.clone()).or_default())
    }

    fn sweep(&mut self) {
        #[cfg(test)]
        {
            self.swept += self.by_key.len();
        }
        self.by_key
            .retain(|_, slot| Arc::strong_count(slot) > 1 || slot.held().strong_count() > 0);
        // The next sweep comes after as many new keys as this one has kept. The cost of a new key
        // therefore does not grow with the number of held keys.
        self.sweep_at = MIN_SWEEP.max(self.by_key.len() * 2);
        self.by_key.shrink_to(self.sweep_at);
    }
}

/// The state of one key of an owner.
#[derive(Debug, Default)]
struct Slot {
    held: Mutex<Weak<HeldLease>>,
    /// Locked while a task acquires the key. Other tasks of the owner wait for that acquisition and
    /// share it.
    locking: tokio::sync::Mutex<()>,
}

impl Slot {
    /// Returns another guard if the owner holds the key.
    fn enter_again(&self) -> Option<LockGuard> {
        let held = self.held().upgrade()?;
        (held.is_held() && held.share()).then(|| LockGuard::new(OwnedLease::new(held)))
    }

    /// Stores the lease of the first guard, for later guards to share.
    fn enter_first(&self, guard: LockGuard) -> LockGuard {
        *self.held() = Arc::downgrade(guard.held());
        guard
    }

    fn held(&self) -> MutexGuard<'_, Weak<HeldLease>> {
        // No code panics while the mutex is locked.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LockClient {
    /// Creates a scope in which locks are re-entrant.
    #[must_use]
    pub fn reentrant_owner(&self) -> ReentrantOwner {
        ReentrantOwner::new(self.clone())
    }
}

impl ReentrantOwner {
    pub(crate) fn new(client: LockClient) -> Self {
        Self {
            client,
            ttl: None,
            slots: Arc::default(),
        }
    }

    /// Sets the TTL, as [`Mutex::with_ttl`](crate::Mutex::with_ttl) does.
    #[must_use]
    pub fn with_ttl<T>(mut self, ttl: T) -> Self
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        self.ttl = Some(ttl.try_into().map_err(Error::from));
        self
    }

    /// Waits until `key` is locked. Does not wait if this owner already holds it.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn lock<K>(&self, key: K) -> Result<LockGuard>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let key = key.try_into()?;
        let slot = self.slot(&key)?;
        // A task of the holder must not queue behind tasks that wait for it.
        if let Some(guard) = slot.enter_again() {
            return Ok(guard);
        }
        let _locking = slot.locking.lock().await;
        match slot.enter_again() {
            Some(guard) => Ok(guard),
            None => Ok(slot.enter_first(self.mutex(key)?.lock().await?)),
        }
    }

    /// Makes one attempt. Returns `None` if another holder has the key, or if another task of this
    /// owner is acquiring it.
    ///
    /// # Errors
    /// As [`Mutex::try_lock`](crate::Mutex::try_lock).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn try_lock<K>(&self, key: K) -> Result<Option<LockGuard>>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let key = key.try_into()?;
        let slot = self.slot(&key)?;
        let locking = slot.locking.try_lock();
        if let Some(guard) = slot.enter_again() {
            return Ok(Some(guard));
        }
        if locking.is_err() {
            return Ok(None);
        }
        Ok(self
            .mutex(key)?
            .try_lock()
            .await?
            .map(|guard| slot.enter_first(guard)))
    }

    /// Waits for at most `timeout`. Returns `None` if another holder had the key until then.
    ///
    /// # Errors
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](crate::Mutex::lock).
    pub async fn lock_timeout<K>(&self, key: K, timeout: Duration) -> Result<Option<LockGuard>>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let key = key.try_into()?;
        let slot = self.slot(&key)?;
        if let Some(guard) = slot.enter_again() {
            return Ok(Some(guard));
        }
        let begun = Instant::now();
        let locking = tokio::time::timeout(timeout, slot.locking.lock()).await;
        // Another task of this owner may have locked it meanwhile.
        if let Some(guard) = slot.enter_again() {
            return Ok(Some(guard));
        }
        if locking.is_err() {
            return self.client.check_answered(&key, timeout).map(|()| None);
        }
        let left = timeout.saturating_sub(begun.elapsed());
        Ok(self
            .mutex(key)?
            .lock_timeout(left)
            .await?
            .map(|guard| slot.enter_first(guard)))
    }

    /// Waits for `key`, runs `work` under it, and releases it. This is [`lock`](Self::lock)
    /// followed by [`LockGuard::run`](crate::LockGuard::run).
    ///
    /// # Errors
    /// As [`Mutex::run`](crate::Mutex::run).
    ///
    /// # Cancel safety
    /// As [`Mutex::run`](crate::Mutex::run).
    pub async fn run<K, T>(&self, key: K, work: impl AsyncFnOnce(LeaseInfo) -> T) -> Result<T>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        self.lock(key).await?.run(work).await
    }

    /// Runs `work`, which may fail, as [`run`](Self::run) does.
    ///
    /// # Errors
    /// The error of the work, or that of [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn try_run<K, T, E>(
        &self,
        key: K,
        work: impl AsyncFnOnce(LeaseInfo) -> Result<T, E>,
    ) -> Result<T, E>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
        E: From<Error>,
    {
        self.lock(key).await?.try_run(work).await
    }

    fn mutex(&self, key: LockKey) -> Result<crate::Mutex> {
        let mutex = self.client.mutex(key);
        Ok(match &self.ttl {
            Some(ttl) => mutex.with_ttl(ttl.clone()?),
            None => mutex,
        })
    }

    fn slot(&self, key: &LockKey) -> Result<Arc<Slot>> {
        self.client.check_usable()?;
        Ok(self
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .of(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> LockKey {
        LockKey::new(format!("key/{n}")).unwrap()
    }

    #[test]
    fn a_new_key_costs_the_same_however_many_are_held() {
        // Values around powers of two, and around the capacities of a hash map.
        for held in [
            0, 1, 7, 8, 14, 15, 16, 17, 28, 29, 448, 1_000, 1_791, 1_792, 1_793, 2_048, 3_583,
            3_584,
        ] {
            let mut slots = Slots::default();
            let locking: Vec<_> = (0..held).map(|n| slots.of(&key(n))).collect();
            slots.swept = 0;
            // Each of these slots is unused before the next key is locked.
            let new = 4 * held.max(MIN_SWEEP);
            for n in 0..new {
                drop(slots.of(&key(held + n)));
            }
            // A sweep visits at most twice as many slots as there were new keys since the last one.
            // The first sweep also visits the held ones.
            assert!(
                slots.swept <= 2 * (new + held),
                "{held} held: {new} new keys visited {} slots",
                slots.swept
            );
            assert!(
                slots.by_key.len() <= 2 * held.max(MIN_SWEEP),
                "{held} held: {} are kept",
                slots.by_key.len()
            );
            assert_eq!(
                locking
                    .iter()
                    .filter(|slot| Arc::strong_count(slot) == 2)
                    .count(),
                held,
                "no used slot is removed"
            );
        }
    }
}

//! [`Owner`]: re-entrant locking. Async code has no thread identity, so the owner is an object.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::{
    client::LockClient,
    error::{Error, ErrorKind, Result},
    guard::LockGuard,
    hold::Hold,
    key::LockKey,
    options::Wait,
    ttl::Ttl,
};

/// Someone who may lock what it has locked already. Made by [`LockClient::owner`]; clones are the same owner.
///
/// Within one owner, locking a key again is immediate and counts; only the last release frees it
/// ([`Released::StillHeld`](crate::Released::StillHeld) until then). All guards of a key share one lease: its token, its
/// deadline, its loss. Another owner in the same process waits, as any other process does.
///
/// Pass the owner (or a clone) down to the code that belongs together.
#[derive(Clone, Debug)]
pub struct Owner {
    client: LockClient,
    ttl: Option<Ttl>,
    holds: Arc<Mutex<HashMap<LockKey, Arc<Slot>>>>,
}

/// What the owner has of one key.
#[derive(Debug, Default)]
struct Slot {
    hold: Mutex<Weak<Hold>>,
    /// Held while a task locks what the owner does not hold: the others share that one acquisition.
    locking: tokio::sync::Mutex<()>,
}

impl Slot {
    /// Another guard of what is held.
    fn enter_again(&self) -> Option<LockGuard> {
        let hold = self.hold().upgrade()?;
        (hold.is_held() && hold.share()).then(|| LockGuard::new(hold))
    }

    fn hold(&self) -> MutexGuard<'_, Weak<Hold>> {
        // Nothing panics while it is held.
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    pub(crate) fn new(client: LockClient) -> Self {
        Self { client, ttl: None, holds: Arc::default() }
    }

    /// How long a grant lasts unless it is renewed.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Ttl) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Locks the key; at once if this owner holds it.
    ///
    /// # Errors
    /// As [`Mutex::lock`](crate::Mutex::lock).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lock<K>(&self, key: K) -> Result<LockGuard>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        self.enter(key.try_into()?, Wait::Forever).await
    }

    /// One attempt.
    ///
    /// # Errors
    /// As [`Mutex::try_lock`](crate::Mutex::try_lock).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn try_lock<K>(&self, key: K) -> Result<LockGuard>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        self.enter(key.try_into()?, Wait::No).await
    }

    /// Waits for at most this long.
    ///
    /// # Errors
    /// As [`Mutex::lock_within`](crate::Mutex::lock_within).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lock_within<K>(&self, key: K, limit: Duration) -> Result<LockGuard>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        self.enter(key.try_into()?, Wait::AtMost(limit)).await
    }

    async fn enter(&self, key: LockKey, wait: Wait) -> Result<LockGuard> {
        self.client.check_usable()?;
        let begun = Instant::now();
        let slot = self.slot(&key);
        // Whoever holds it does not queue behind those who wait for it.
        if let Some(guard) = slot.enter_again() {
            return Ok(guard);
        }
        let locking = match wait {
            // Another task of this owner is about to get it: to try means not to wait for that.
            Wait::No => slot.locking.try_lock().map_err(|_| {
                Error::new(ErrorKind::Contended, format!("another task of this owner is locking `{key}`"))
            }),
            Wait::AtMost(limit) => timeout(limit, slot.locking.lock()).await.map_err(|_elapsed| timed_out(&key, limit)),
            Wait::Forever => Ok(slot.locking.lock().await),
        };
        // Also if it was another task's turn: that may have got it just now.
        if let Some(guard) = slot.enter_again() {
            return Ok(guard);
        }
        let _locking = locking?;
        let left = match wait {
            Wait::AtMost(limit) => Wait::AtMost(limit.saturating_sub(begun.elapsed())),
            wait => wait,
        };
        let mut mutex = self.client.mutex(key.clone()).with_wait(left);
        if let Some(ttl) = self.ttl {
            mutex = mutex.with_ttl(ttl);
        }
        let guard = mutex.lock().await.map_err(|error| match wait {
            // In the caller's terms: some of the time may have gone by while another task of this owner was at it.
            Wait::AtMost(limit) if error.kind() == ErrorKind::TimedOut => timed_out(&key, limit),
            _ => error,
        })?;
        *slot.hold() = Arc::downgrade(guard.hold());
        Ok(guard)
    }

    fn slot(&self, key: &LockKey) -> Arc<Slot> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = holds.get(key) {
            return Arc::clone(slot);
        }
        // Before it grows, forget what is neither held nor being locked.
        if holds.len() == holds.capacity() {
            holds.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.hold().strong_count() > 0);
        }
        Arc::clone(holds.entry(key.clone()).or_default())
    }
}

fn timed_out(key: &LockKey, limit: Duration) -> Error {
    Error::new(ErrorKind::TimedOut, format!("`{key}` was not granted within {limit:?}"))
}

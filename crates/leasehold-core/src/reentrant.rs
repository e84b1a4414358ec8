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
    held_lease::HeldLease,
    key::LockKey,
    options::Wait,
    ttl::Ttl,
};

/// Someone who may lock what it has locked already. Made by [`LockClient::owner`]; clones are the
/// same owner.
///
/// Within one owner, locking a key again is immediate and counts; only the last release frees it
/// ([`Released::StillHeld`](crate::Released::StillHeld) until then). All guards of a key share one
/// lease: its token, its deadline, its loss. Another owner in the same process waits, as any other
/// process does.
///
/// Pass the owner (or a clone) down to the code that belongs together.
#[derive(Clone, Debug)]
pub struct Owner {
    client: LockClient,
    ttl: Option<Ttl>,
    slots: Arc<Mutex<Slots>>,
}

/// The keys of an owner.
#[derive(Debug, Default)]
struct Slots {
    by_key: HashMap<LockKey, Arc<Slot>>,
    /// At how many keys those are forgotten that are neither held nor being locked.
    sweep_at: usize,
    /// How many slots all sweeps looked at.
    #[cfg(test)]
    swept: usize,
}

/// So many keys are never swept.
const FEW: usize = 16;

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
            .retain(|_, slot| Arc::strong_count(slot) > 1 || slot.hold().strong_count() > 0);
        // As many new keys come before the next sweep as this one left, so a new key costs the same
        // however many are held.
        self.sweep_at = FEW.max(self.by_key.len() * 2);
        self.by_key.shrink_to(self.sweep_at);
    }
}

/// What the owner has of one key.
#[derive(Debug, Default)]
struct Slot {
    hold: Mutex<Weak<HeldLease>>,
    /// Held while a task locks what the owner does not hold: the others share that one acquisition.
    locking: tokio::sync::Mutex<()>,
}

impl Slot {
    /// Another guard of what is held.
    fn enter_again(&self) -> Option<LockGuard> {
        let hold = self.hold().upgrade()?;
        (hold.is_held() && hold.share()).then(|| LockGuard::new(hold))
    }

    fn hold(&self) -> MutexGuard<'_, Weak<HeldLease>> {
        // Nothing panics while it is held.
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    pub(crate) fn new(client: LockClient) -> Self {
        Self {
            client,
            ttl: None,
            slots: Arc::default(),
        }
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
    /// As [`Mutex::lock_timeout`](crate::Mutex::lock_timeout).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lock_timeout<K>(&self, key: K, limit: Duration) -> Result<LockGuard>
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        self.enter(key.try_into()?, Wait::AtMost(limit)).await
    }

    async fn enter(&self, key: LockKey, wait: Wait) -> Result<LockGuard> {
        self.client.check_usable()?;
        let slot = self.slot(&key);
        // Whoever holds it does not queue behind those who wait for it.
        if let Some(guard) = slot.enter_again() {
            return Ok(guard);
        }
        let mut wait = wait;
        let locking = match (slot.locking.try_lock(), wait) {
            (Ok(locking), _) => Ok(locking),
            // Another task of this owner is about to get it: to try means not to wait for that.
            (Err(_), Wait::No) => Err(Error::new(
                ErrorKind::Contended,
                format!("another task of this owner is locking `{key}`"),
            )),
            (Err(_), Wait::Forever) => Ok(slot.locking.lock().await),
            (Err(_), Wait::AtMost(limit)) => {
                let begun = Instant::now();
                let locking = timeout(limit, slot.locking.lock()).await;
                wait = Wait::AtMost(limit.saturating_sub(begun.elapsed()));
                locking.map_err(|_elapsed| self.client.in_vain(&key, limit))
            }
        };
        // Also if it was another task's turn: that may have got it just now.
        if let Some(guard) = slot.enter_again() {
            return Ok(guard);
        }
        let _locking = locking?;
        let mut mutex = self.client.mutex(key.clone()).with_wait(wait);
        if let Some(ttl) = self.ttl {
            mutex = mutex.with_ttl(ttl);
        }
        let guard = mutex.lock().await?;
        *slot.hold() = Arc::downgrade(guard.hold());
        Ok(guard)
    }

    fn slot(&self, key: &LockKey) -> Arc<Slot> {
        self.slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .of(key)
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
        // Around powers of two, and what a hash map of them has room for.
        for held in [
            0, 1, 7, 8, 14, 15, 16, 17, 28, 29, 448, 1_000, 1_791, 1_792, 1_793, 2_048, 3_583,
            3_584,
        ] {
            let mut slots = Slots::default();
            let locking: Vec<_> = (0..held).map(|n| slots.of(&key(n))).collect();
            slots.swept = 0;
            // Each of these is forgotten before the next comes.
            let new = 4 * held.max(FEW);
            for n in 0..new {
                drop(slots.of(&key(held + n)));
            }
            // A sweep sees at most twice as many slots as keys came since the last one, and the
            // first pays for those before.
            assert!(
                slots.swept <= 2 * (new + held),
                "{held} held: {new} new keys looked at {} slots",
                slots.swept
            );
            assert!(
                slots.by_key.len() <= 2 * held.max(FEW),
                "{held} held: {} are kept",
                slots.by_key.len()
            );
            assert_eq!(
                locking
                    .iter()
                    .filter(|slot| Arc::strong_count(slot) == 2)
                    .count(),
                held,
                "none is forgotten"
            );
        }
    }
}

//! [`WaiterRegistry`]: the waiters of this process, which the invalidations of the server notify.
//! [`NotificationBackoff`]: delays attempts after notifications that report no change.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{AcquisitionId, backend::BoxFuture};
use tokio::{sync::Notify, time::Instant};

use crate::keys::Parts;

/// The largest number of invalidated keys that are remembered.
const REMEMBERED: usize = 65_536;

/// The waiters of this process.
///
/// A waiter must not miss an invalidation that arrives between its attempt and its registration,
/// and an attempt that succeeds should not pay for a registration. The caller therefore only reads
/// a [`Generation`] before it sends an attempt. If the attempt is refused, the caller registers a
/// waiter, which is notified at once if its key was invalidated since.
#[derive(Debug)]
pub(crate) struct WaiterRegistry {
    /// The number of invalidations. It changes only while the lock of `waiters` is held.
    generation: AtomicU64,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    next: u64,
    by_key: HashMap<Vec<u8>, Vec<(u64, Arc<Notify>)>>,
    /// For the hash of a key, the generation that its last invalidation started.
    invalidated: HashMap<u64, u64>,
    /// Invalidations up to this generation are no longer remembered, so any key may have changed.
    forgotten: u64,
}

/// The number of invalidations before an attempt was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation(u64);

impl WaiterRegistry {
    pub(crate) fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            waiters: Mutex::default(),
        }
    }

    /// Returns the current generation. Call it before an attempt is sent.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Registers a waiter for these keys after an attempt was refused. `before` was read before the
    /// attempt was sent.
    pub(crate) fn register<const N: usize>(
        self: &Arc<Self>,
        keys: [Parts<'_>; N],
        before: Generation,
    ) -> BoxFuture<'static, ()> {
        let notify = Arc::new(Notify::new());
        let keys = keys.map(Parts::to_vec);
        let id = {
            let mut waiters = self.lock();
            waiters.next += 1;
            let id = waiters.next;
            for key in &keys {
                waiters
                    .by_key
                    .entry(key.clone())
                    .or_default()
                    .push((id, Arc::clone(&notify)));
            }
            if waiters.may_have_changed(&keys, before) {
                notify.notify_one();
            }
            id
        };
        let armed = Registration {
            waiters: Arc::clone(self),
            keys: keys.into(),
            id,
            notify,
        };
        Box::pin(async move { armed.notify.notified().await })
    }

    /// Notifies the waiters for a key that has changed.
    pub(crate) fn notify(&self, key: &[u8]) {
        let woken = {
            let mut waiters = self.lock();
            let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
            if waiters.invalidated.len() >= REMEMBERED {
                waiters.invalidated.clear();
                waiters.forgotten = generation;
            }
            let hash = waiters.hash(key);
            waiters.invalidated.insert(hash, generation);
            waiters.by_key.remove(key)
        };
        for (_, notify) in woken.into_iter().flatten() {
            notify.notify_one();
        }
    }

    /// Notifies all waiters, after a flush or the loss of a connection.
    pub(crate) fn notify_all(&self) {
        let woken = {
            let mut waiters = self.lock();
            waiters.invalidated.clear();
            waiters.forgotten = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
            std::mem::take(&mut waiters.by_key)
        };
        for (_, notify) in woken.into_values().flatten() {
            notify.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // No code panics while it holds the lock, and a panic would leave the map intact.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiters {
    /// Returns whether one of the keys may have been invalidated after this generation.
    ///
    /// An attempt changes other keys of its lock, and is notified of these changes as well. So that
    /// they are not taken for changes of the lock, each key is remembered by its own hash.
    fn may_have_changed(&self, keys: &[Vec<u8>], before: Generation) -> bool {
        let last = |key| self.invalidated.get(&self.hash(key)).copied();
        before.0 < self.forgotten || keys.iter().any(|key| last(key) > Some(before.0))
    }

    fn hash(&self, key: &[u8]) -> u64 {
        self.invalidated.hasher().hash_one(key)
    }
}

/// The registration of one waiter, which ends when it is dropped.
struct Registration {
    waiters: Arc<WaiterRegistry>,
    keys: Vec<Vec<u8>>,
    id: u64,
    notify: Arc<Notify>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut waiters = self.waiters.lock();
        for key in &self.keys {
            if let Some(of_key) = waiters.by_key.get_mut(key) {
                of_key.retain(|(id, _)| *id != self.id);
                if of_key.is_empty() {
                    waiters.by_key.remove(key);
                }
            }
        }
    }
}

/// The holder because of which an attempt was refused. Finding the same holder again means that
/// nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObservedHolder {
    /// The holder's lock value. For permits, that of the permit that expires last.
    pub(crate) holder: Vec<u8>,
    /// The server's time at which the lock expires, in milliseconds; negative if it never does. For
    /// permits, the sum of these times.
    pub(crate) ends: i64,
}

/// The first and the longest delay. The delay doubles with each needless attempt.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// The age from which a refusal is ignored. Waiters make an attempt every two seconds anyway, so an
/// older refusal says nothing about notifications.
const RECENT: Duration = Duration::from_secs(2);
/// The largest difference, in milliseconds, between two readings of an unchanged expiry. The server
/// rounds its clock and the time to live separately.
const ROUNDING: u64 = 5;
/// The smallest number of remembered waiters at which old ones are removed.
const FEW: usize = 64;

/// A record of refusals that delays notifications which bring a waiter nothing new.
///
/// A server that tracks more keys than `tracking-table-max-keys` allows forgets some of them, and
/// reports each of these as changed. The notified waiter makes an attempt, is refused, and is
/// tracked again, which makes the server forget another key. If two attempts in a row are refused
/// because of the same holder, with a notification in between, the next notification is therefore
/// delayed.
#[derive(Debug, Default)]
pub(crate) struct NotificationBackoff {
    by_waiter: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    last: HashMap<AcquisitionId, Refused>,
    /// The number of remembered waiters at which old ones are removed.
    limit: usize,
    warned: bool,
}

#[derive(Debug)]
struct Refused {
    found: ObservedHolder,
    at: Instant,
    /// Whether the waiter was notified after the refusal.
    notified: bool,
    pause: Duration,
}

impl NotificationBackoff {
    /// Records that a waiter makes its next attempt because it was notified. An attempt for another
    /// reason says nothing about notifications.
    pub(crate) fn notified(&self, waiter: AcquisitionId) {
        if let Some(refused) = self.lock().last.get_mut(&waiter) {
            refused.notified = true;
        }
    }

    /// Records a refusal and returns for how long after it a notification is delayed.
    pub(crate) fn refused(&self, waiter: AcquisitionId, found: ObservedHolder) -> Duration {
        let now = Instant::now();
        let mut refusals = self.lock();
        if refusals.last.len() >= refusals.limit {
            refusals.last.retain(|_, refused| now - refused.at < RECENT);
            refusals.limit = FEW.max(2 * refusals.last.len());
        }
        let before = refusals
            .last
            .get(&waiter)
            .filter(|before| now - before.at < RECENT);
        let pause = match before {
            Some(before) if before.notified && before.found.is_like(&found) => {
                (before.pause * 2).clamp(PAUSES.0, PAUSES.1)
            }
            _ => Duration::ZERO,
        };
        if pause == PAUSES.1 && !std::mem::replace(&mut refusals.warned, true) {
            tracing::warn!(
                "the server notifies waiters although nothing has changed, so they are notified up to a second late; if more \
                 keys are waited for than its `tracking-table-max-keys` allows, raise that"
            );
        }
        refusals.last.insert(
            waiter,
            Refused {
                found,
                at: now,
                notified: false,
                pause,
            },
        );
        pause
    }

    fn lock(&self) -> MutexGuard<'_, Refusals> {
        // Only a `tracing` subscriber can panic while the lock is held, and it leaves the state
        // intact.
        self.by_waiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObservedHolder {
    fn is_like(&self, other: &Self) -> bool {
        self.holder == other.holder && self.ends.abs_diff(other.ends) <= ROUNDING
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn key(name: &[u8]) -> Parts<'_> {
        Parts([name, b"", b"", b"", b"", b"", b""])
    }

    #[tokio::test]
    async fn invalidation_before_registration_is_not_missed() {
        let waiters = Arc::new(WaiterRegistry::new());
        let before = waiters.generation();
        waiters.notify(b"a");
        assert!(
            waiters
                .register([key(b"a")], before)
                .now_or_never()
                .is_some()
        );
    }

    #[tokio::test]
    async fn invalidations_of_other_keys_notify_nobody() {
        let waiters = Arc::new(WaiterRegistry::new());
        let before = waiters.generation();
        for n in 0..REMEMBERED {
            waiters.notify(format!("{{a}}:{n}").as_bytes());
        }
        let wake = || waiters.register([key(b"a")], before).now_or_never();
        assert!(wake().is_none());
        // One more than are remembered.
        waiters.notify(b"b");
        assert!(wake().is_some());
    }

    #[tokio::test]
    async fn a_flush_before_registration_is_not_missed() {
        let waiters = Arc::new(WaiterRegistry::new());
        let before = waiters.generation();
        waiters.notify_all();
        let wake = |before| waiters.register([key(b"a")], before).now_or_never();
        assert!(wake(before).is_some());
        assert!(wake(waiters.generation()).is_none());
    }

    #[tokio::test]
    async fn change_notifies_its_key_and_a_flush_notifies_all() {
        let waiters = Arc::new(WaiterRegistry::new());
        let mut a = waiters.register([key(b"a"), key(b"a2")], waiters.generation());
        let mut b = waiters.register([key(b"b")], waiters.generation());
        assert!((&mut a).now_or_never().is_none() && (&mut b).now_or_never().is_none());
        waiters.notify(b"a2");
        assert!((&mut a).now_or_never().is_some() && (&mut b).now_or_never().is_none());
        waiters.notify_all();
        assert!((&mut b).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_dropped_waiter_leaves_nothing() {
        let waiters = Arc::new(WaiterRegistry::new());
        drop(waiters.register([key(b"a")], waiters.generation()));
        assert!(waiters.lock().by_key.is_empty());
    }

    fn found(holder: &str, ends: i64) -> ObservedHolder {
        ObservedHolder {
            holder: holder.into(),
            ends,
        }
    }

    /// Records a refusal and then a notification.
    fn refused(
        backoff: &NotificationBackoff,
        waiter: AcquisitionId,
        found: ObservedHolder,
    ) -> Duration {
        let pause = backoff.refused(waiter, found);
        backoff.notified(waiter);
        pause
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_asks_without_a_notification_does_not_pause() {
        let (backoff, waiter) = (NotificationBackoff::default(), AcquisitionId::random());
        for _ in 0..10 {
            assert_eq!(backoff.refused(waiter, found("a", 1_000)), Duration::ZERO);
        }
        backoff.notified(waiter);
        backoff.notified(AcquisitionId::random());
        assert_eq!(backoff.refused(waiter, found("a", 1_000)), PAUSES.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_refused_for_the_same_again_pauses_longer() {
        let (backoff, waiter) = (NotificationBackoff::default(), AcquisitionId::random());
        let pause = |ends| refused(&backoff, waiter, found("a", ends)).as_millis();
        assert_eq!(
            (pause(1_000), pause(1_001), pause(999), pause(1_000)),
            (0, 10, 20, 40)
        );
        for _ in 0..10 {
            pause(1_000);
        }
        assert_eq!(pause(1_000), 1_000);
        // The holder has renewed the lock.
        assert_eq!((pause(2_000), pause(2_000)), (0, 10));
        assert_eq!(
            backoff.refused(AcquisitionId::random(), found("a", 2_000)),
            Duration::ZERO
        );
        assert_eq!(refused(&backoff, waiter, found("b", 2_000)), Duration::ZERO);
        assert_eq!(refused(&backoff, waiter, found("b", 2_000)), PAUSES.0);
        tokio::time::advance(RECENT).await;
        assert_eq!(refused(&backoff, waiter, found("b", 2_000)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_that_are_gone_are_forgotten() {
        let backoff = NotificationBackoff::default();
        for _ in 0..1_000 {
            tokio::time::advance(Duration::from_millis(100)).await;
            backoff.refused(AcquisitionId::random(), found("a", 1));
        }
        let remembered = backoff.by_waiter.lock().unwrap().last.len();
        assert!(remembered <= FEW, "{remembered}");
    }
}

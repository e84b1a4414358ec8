//! [`WaiterRegistry`]: the waiters of this process, which the invalidations of the server notify.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use leasehold_core::backend::BoxFuture;
use tokio::sync::Notify;

use crate::keys::Parts;

/// Keys are spread over this many generations, so that the invalidation of one seldom looks like
/// that of another.
const GENERATIONS: usize = 256;

/// The waiters of this process.
///
/// A waiter must not miss an invalidation that arrives between its attempt and its registration,
/// and an attempt that succeeds should not pay for a registration. The caller therefore only reads
/// a [`Generation`] before it sends an attempt. If the attempt is refused, the caller registers a
/// waiter, which is notified at once if the generation has changed since.
#[derive(Debug)]
pub(crate) struct WaiterRegistry {
    generations: Box<[AtomicU64]>,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    next: u64,
    by_key: HashMap<Vec<u8>, Vec<(u64, Arc<Notify>)>>,
}

/// The number of invalidations of the keys of one attempt before it was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation(u64);

impl WaiterRegistry {
    pub(crate) fn new() -> Self {
        Self {
            generations: (0..GENERATIONS).map(|_| AtomicU64::new(0)).collect(),
            waiters: Mutex::default(),
        }
    }

    /// Returns the current generation of the keys. Call it before an attempt is sent.
    pub(crate) fn generation<const N: usize>(&self, keys: [Parts<'_>; N]) -> Generation {
        Generation(
            keys.iter()
                .map(|key| {
                    self.generation_of(key.0.iter().copied())
                        .load(Ordering::Acquire)
                })
                .sum(),
        )
    }

    /// Registers a waiter for these keys after an attempt was refused. `before` was read before the
    /// attempt was sent.
    pub(crate) fn register<const N: usize>(
        self: &Arc<Self>,
        keys: [Parts<'_>; N],
        before: Generation,
    ) -> BoxFuture<'static, ()> {
        let notify = Arc::new(Notify::new());
        let id = {
            let mut waiters = self.lock();
            waiters.next += 1;
            let id = waiters.next;
            for key in keys {
                waiters
                    .by_key
                    .entry(key.to_vec())
                    .or_default()
                    .push((id, Arc::clone(&notify)));
            }
            id
        };
        if self.generation(keys).0 != before.0 {
            notify.notify_one();
        }
        let keys = keys.iter().map(|key| key.to_vec()).collect();
        let armed = Registration {
            waiters: Arc::clone(self),
            keys,
            id,
            notify,
        };
        Box::pin(async move { armed.notify.notified().await })
    }

    /// Notifies the waiters for a key that has changed.
    pub(crate) fn notify(&self, key: &[u8]) {
        self.generation_of([key].into_iter())
            .fetch_add(1, Ordering::AcqRel);
        let woken = self.lock().by_key.remove(key);
        for (_, notify) in woken.into_iter().flatten() {
            notify.notify_one();
        }
    }

    /// Notifies all waiters, after a flush or the loss of a connection.
    pub(crate) fn notify_all(&self) {
        for generation in &self.generations {
            generation.fetch_add(1, Ordering::AcqRel);
        }
        let woken = std::mem::take(&mut self.lock().by_key);
        for (_, notify) in woken.into_values().flatten() {
            notify.notify_one();
        }
    }

    fn generation_of<'a>(&self, parts: impl Iterator<Item = &'a [u8]>) -> &AtomicU64 {
        // FNV-1a: a few nanoseconds for names of usual length, and keys here are not chosen by an
        // adversary who gains more than a needless attempt.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in parts.flatten() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        &self.generations[(hash >> 32) as usize % GENERATIONS]
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // No code panics while it holds the lock, and a panic would leave the map intact.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
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
        let before = waiters.generation([key(b"a")]);
        waiters.notify(b"a");
        assert!(
            waiters
                .register([key(b"a")], before)
                .now_or_never()
                .is_some()
        );
    }

    #[tokio::test]
    async fn change_notifies_its_key_and_a_flush_notifies_all() {
        let waiters = Arc::new(WaiterRegistry::new());
        let mut a = waiters.register(
            [key(b"a"), key(b"a2")],
            waiters.generation([key(b"a"), key(b"a2")]),
        );
        let mut b = waiters.register([key(b"b")], waiters.generation([key(b"b")]));
        assert!((&mut a).now_or_never().is_none() && (&mut b).now_or_never().is_none());
        waiters.notify(b"a2");
        assert!((&mut a).now_or_never().is_some() && (&mut b).now_or_never().is_none());
        waiters.notify_all();
        assert!((&mut b).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_dropped_waiter_leaves_nothing() {
        let waiters = Arc::new(WaiterRegistry::new());
        drop(waiters.register([key(b"a")], waiters.generation([key(b"a")])));
        assert!(waiters.lock().by_key.is_empty());
    }
}

//! The watch on one lock, and who waits for it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use etcd_client::{WatchFilterType, WatchOptions};
use leasehold_core::backend::BoxFuture;
use tokio::{sync::Notify, time::Instant};

use crate::keys::{Directory, EtcdKey};

/// The watch on one lock.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) id: i64,
    pub(super) directory: Directory,
    pub(super) users: AtomicUsize,
    state: Mutex<Waiters>,
    /// How much was missed or seen: whoever reads before and after knows whether it missed
    /// something.
    generation: AtomicU64,
    pub(super) warmed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Waiters {
    pub(super) asked: bool,
    pub(super) warm: bool,
    pub(super) idle_since: Option<Instant>,
    next: u64,
    by_key: HashMap<EtcdKey, Vec<(u64, Arc<Notify>)>>,
    /// Those who wait for any change.
    any: Vec<(u64, Arc<Notify>)>,
}

/// What was missed until now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation(u64);

impl Watched {
    pub(super) fn new(id: i64, directory: Directory) -> Self {
        Self {
            id,
            directory,
            users: AtomicUsize::new(0),
            state: Mutex::default(),
            generation: AtomicU64::new(0),
            warmed: Notify::new(),
        }
    }

    pub(super) fn options(&self) -> WatchOptions {
        WatchOptions::new()
            .with_range(self.directory.end())
            .with_filters([WatchFilterType::NoPut])
            .with_watch_id(self.id)
    }

    pub(super) fn became_warm(&self) {
        self.lock().warm = true;
        self.warmed.notify_waiters();
    }

    /// Nothing is told any more: whoever waits looks for itself.
    pub(super) fn became_cold(&self) {
        let woken = {
            let mut waiters = self.lock();
            waiters.warm = false;
            self.generation.fetch_add(1, Ordering::AcqRel);
            let by_key = std::mem::take(&mut waiters.by_key);
            let any = std::mem::take(&mut waiters.any);
            by_key
                .into_values()
                .flatten()
                .chain(any)
                .collect::<Vec<_>>()
        };
        for (_, notify) in woken {
            notify.notify_one();
        }
    }

    pub(super) fn deleted(&self, key: &[u8]) {
        let woken = {
            let mut waiters = self.lock();
            self.generation.fetch_add(1, Ordering::AcqRel);
            let by_key = waiters
                .by_key
                .remove(&EtcdKey::from(key))
                .unwrap_or_default();
            let any = std::mem::take(&mut waiters.any);
            by_key.into_iter().chain(any).collect::<Vec<_>>()
        };
        for (_, notify) in woken {
            notify.notify_one();
        }
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    pub(super) fn arm(
        self: &Arc<Self>,
        keys: Option<Vec<EtcdKey>>,
        before: Generation,
    ) -> BoxFuture<'static, ()> {
        let notify = Arc::new(Notify::new());
        let id = {
            let mut waiters = self.lock();
            waiters.next += 1;
            let id = waiters.next;
            match &keys {
                None => waiters.any.push((id, Arc::clone(&notify))),
                Some(keys) => {
                    for key in keys {
                        waiters
                            .by_key
                            .entry(key.clone())
                            .or_default()
                            .push((id, Arc::clone(&notify)));
                    }
                }
            }
            id
        };
        if self.generation().0 != before.0 {
            notify.notify_one();
        }
        let armed = Armed {
            watched: Arc::clone(self),
            keys,
            id,
            notify,
        };
        Box::pin(async move { armed.notify.notified().await })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Disarms when dropped.
struct Armed {
    watched: Arc<Watched>,
    keys: Option<Vec<EtcdKey>>,
    id: u64,
    notify: Arc<Notify>,
}

impl Drop for Armed {
    fn drop(&mut self) {
        let mut waiters = self.watched.lock();
        match &self.keys {
            None => waiters.any.retain(|(id, _)| *id != self.id),
            Some(keys) => {
                for key in keys {
                    if let Some(of_key) = waiters.by_key.get_mut(key) {
                        of_key.retain(|(id, _)| *id != self.id);
                        if of_key.is_empty() {
                            waiters.by_key.remove(key);
                        }
                    }
                }
            }
        }
    }
}

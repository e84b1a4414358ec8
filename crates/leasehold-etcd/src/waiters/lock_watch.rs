//! [`LockWatch`]: one watch, on a lock or on the record beside it, and its waiters.

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

use crate::keys::{EtcdKey, LockPrefix};

/// The keys that one watch reports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Watched {
    /// The deletions of the keys of a lock.
    Lock(LockPrefix),
    /// The writes and the deletions of the keys of a lock.
    Queue(LockPrefix),
    /// The writes and the deletion of the record beside a lock.
    Record(EtcdKey),
}

impl Watched {
    /// Returns the first key.
    pub(super) fn start(&self) -> Vec<u8> {
        match self {
            Self::Lock(lock_prefix) | Self::Queue(lock_prefix) => lock_prefix.start(),
            Self::Record(key) => key.to_vec(),
        }
    }
}

/// The watch on one lock, or on the record beside it.
#[derive(Debug)]
pub(super) struct LockWatch {
    pub(super) id: i64,
    pub(super) watched: Watched,
    pub(super) users: AtomicUsize,
    state: Mutex<WatchState>,
    /// Counts the changes that were seen, and the times when some may have been missed. A waiter
    /// that reads it twice knows whether it missed a change.
    generation: AtomicU64,
    pub(super) established: Notify,
}

#[derive(Debug, Default)]
pub(super) struct WatchState {
    pub(super) requested: bool,
    pub(super) is_established: bool,
    pub(super) idle_since: Option<Instant>,
    next: u64,
    by_key: HashMap<EtcdKey, Vec<(u64, Arc<Notify>)>>,
    /// The waiters for any change.
    any: Vec<(u64, Arc<Notify>)>,
}

/// A point in time, to find out later whether a change was missed since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation(u64);

impl LockWatch {
    pub(super) fn new(id: i64, watched: Watched) -> Self {
        Self {
            id,
            watched,
            users: AtomicUsize::new(0),
            state: Mutex::default(),
            generation: AtomicU64::new(0),
            established: Notify::new(),
        }
    }

    pub(super) fn options(&self) -> WatchOptions {
        let options = WatchOptions::new().with_watch_id(self.id);
        match &self.watched {
            Watched::Lock(lock_prefix) => options
                .with_range(lock_prefix.end())
                .with_filters([WatchFilterType::NoPut]),
            Watched::Queue(lock_prefix) => options.with_range(lock_prefix.end()),
            Watched::Record(_) => options,
        }
    }

    pub(super) fn on_created(&self) {
        self.lock().is_established = true;
        self.established.notify_waiters();
    }

    /// Handles the end of the watch: no change is reported any more, so all waiters are notified
    /// and check for themselves.
    pub(super) fn on_lost(&self) {
        let waiters = {
            let mut state = self.lock();
            state.is_established = false;
            self.generation.fetch_add(1, Ordering::AcqRel);
            let by_key = std::mem::take(&mut state.by_key);
            let any = std::mem::take(&mut state.any);
            by_key
                .into_values()
                .flatten()
                .chain(any)
                .collect::<Vec<_>>()
        };
        for (_, notify) in waiters {
            notify.notify_one();
        }
    }

    /// Handles a change of this key.
    pub(super) fn changed(&self, key: &[u8]) {
        let waiters = {
            let mut state = self.lock();
            self.generation.fetch_add(1, Ordering::AcqRel);
            let by_key = state.by_key.remove(&EtcdKey::from(key)).unwrap_or_default();
            let any = std::mem::take(&mut state.any);
            by_key.into_iter().chain(any).collect::<Vec<_>>()
        };
        for (_, notify) in waiters {
            notify.notify_one();
        }
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    pub(super) fn wait_for(
        self: &Arc<Self>,
        keys: Option<Vec<EtcdKey>>,
        before: Generation,
    ) -> BoxFuture<'static, ()> {
        let notify = Arc::new(Notify::new());
        let id = {
            let mut state = self.lock();
            state.next += 1;
            let id = state.next;
            match &keys {
                None => state.any.push((id, Arc::clone(&notify))),
                Some(keys) => {
                    for key in keys {
                        state
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
        let guard = WaitGuard {
            watch: Arc::clone(self),
            keys,
            id,
            notify,
        };
        Box::pin(async move { guard.notify.notified().await })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, WatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One waiter for a change, which is removed when it is dropped.
struct WaitGuard {
    watch: Arc<LockWatch>,
    keys: Option<Vec<EtcdKey>>,
    id: u64,
    notify: Arc<Notify>,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut state = self.watch.lock();
        match &self.keys {
            None => state.any.retain(|(id, _)| *id != self.id),
            Some(keys) => {
                for key in keys {
                    if let Some(of_key) = state.by_key.get_mut(key) {
                        of_key.retain(|(id, _)| *id != self.id);
                        if of_key.is_empty() {
                            state.by_key.remove(key);
                        }
                    }
                }
            }
        }
    }
}

//! [`LocalQueues`]: the queues of all keys of a client.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    clock::{Clock, Timestamp},
    error::{Error, ErrorKind},
    key::LockKey,
    local_queue::key_queue::KeyQueue,
    mode::Mode,
    signal::Signal,
};

/// Unused queues are not removed while there are fewer than this.
const MIN_PURGE: usize = 64;

/// The queues of all keys of a client.
#[derive(Debug)]
pub(crate) struct LocalQueues {
    state: Mutex<State>,
    pub(super) clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    queues: HashMap<QueueKey, KeyQueue>,
    /// The number of queues at which unused ones are removed.
    purge_at: usize,
    pub(super) next_id: u64,
    pub(super) closed: bool,
}

/// The key of a queue. Permits have a namespace of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct QueueKey {
    key: LockKey,
    permit: bool,
}

impl QueueKey {
    pub(super) fn new(key: &LockKey, mode: Mode) -> Self {
        Self {
            key: key.clone(),
            permit: mode.is_permit(),
        }
    }
}

impl LocalQueues {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Mutex::default(),
            clock,
        }
    }

    /// Returns a receiver that completes when all releases of this key are sent that have begun by
    /// now, or `None` if there are none.
    pub(crate) fn releases(&self, key: &LockKey, mode: Mode) -> Option<oneshot::Receiver<()>> {
        self.with_existing(&QueueKey::new(key, mode), KeyQueue::releases)
    }

    /// Returns the signal of the task that was admitted last. It may still be ahead.
    pub(crate) fn last(&self, key: &LockKey, mode: Mode) -> Option<Arc<Signal>> {
        self.with_existing(&QueueKey::new(key, mode), |queue| {
            queue.last.as_ref().map(|last| Arc::clone(&last.signal))
        })
    }

    /// Ends all current and later waits with [`ErrorKind::Closed`].
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for queue in state.queues.values_mut() {
            queue.waiters.clear();
        }
    }

    /// Calls `look` on a key's queue, if there is one.
    pub(super) fn with_existing<T>(
        &self,
        key: &QueueKey,
        look: impl FnOnce(&mut KeyQueue) -> Option<T>,
    ) -> Option<T> {
        self.lock().queues.get_mut(key).and_then(look)
    }

    /// Calls `change` on a key's queue with the current time, and records if the queue is idle
    /// afterwards.
    pub(super) fn change<T>(
        &self,
        key: &QueueKey,
        change: impl FnOnce(&mut KeyQueue, Timestamp) -> T,
    ) -> T {
        let now = self.clock.now();
        let mut state = self.lock();
        let queue = state.open(key, now);
        let changed = change(queue, now);
        if queue.is_idle() {
            queue.rest(now);
        }
        changed
    }

    /// Locks the state. A poisoned mutex is ignored, because the state is consistent between
    /// statements.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the queue of a key. Creates one if there is none, or if its quota no longer counts.
    pub(super) fn open(&mut self, key: &QueueKey, now: Timestamp) -> &mut KeyQueue {
        if self.queues.len() >= self.purge_at.max(MIN_PURGE) {
            self.queues.retain(|_, queue| !queue.is_unused(now));
            self.purge_at = 2 * self.queues.len();
        }
        let queue = self.queues.entry(key.clone()).or_default();
        if queue.is_unused(now) {
            *queue = KeyQueue::default();
        }
        queue
    }
}

pub(super) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the client is closed or drains; create a new one",
    )
}

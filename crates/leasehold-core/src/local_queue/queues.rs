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

/// With fewer keys than this, those that are no longer used are not searched for.
const FEW: usize = 64;

/// The queues of all keys of a client.
#[derive(Debug)]
pub(crate) struct LocalQueues {
    state: Mutex<State>,
    pub(super) clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    lanes: HashMap<QueueKey, KeyQueue>,
    /// With this many keys, those that are no longer used are removed.
    purge_at: usize,
    pub(super) next_ticket: u64,
    pub(super) closed: bool,
}

/// Permits are a name space of their own.
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
        self.look(&QueueKey::new(key, mode), KeyQueue::releases)
    }

    /// Returns the signal of the task that was admitted last. It may still be ahead.
    pub(crate) fn last(&self, key: &LockKey, mode: Mode) -> Option<Arc<Signal>> {
        self.look(&QueueKey::new(key, mode), |lane| {
            lane.last.as_ref().map(|last| Arc::clone(&last.signal))
        })
    }

    /// Ends all waits with [`ErrorKind::Closed`], and those that begin later.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for lane in state.lanes.values_mut() {
            lane.queue.clear();
        }
    }

    /// Looks at a key's queue, if there is one.
    pub(super) fn look<T>(
        &self,
        key: &QueueKey,
        look: impl FnOnce(&mut KeyQueue) -> Option<T>,
    ) -> Option<T> {
        self.lock().lanes.get_mut(key).and_then(look)
    }

    /// Changes a key's queue, with the present in hand.
    pub(super) fn change<T>(
        &self,
        key: &QueueKey,
        change: impl FnOnce(&mut KeyQueue, Timestamp) -> T,
    ) -> T {
        let now = self.clock.now();
        let mut state = self.lock();
        let lane = state.open(key, now);
        let changed = change(lane, now);
        if lane.is_idle() {
            lane.rest(now);
        }
        changed
    }

    /// Locks the state. A panic under the mutex would be a bug of this file. The state is
    /// consistent between statements.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the queue of a key, a new one if there is none that still counts.
    pub(super) fn open(&mut self, key: &QueueKey, now: Timestamp) -> &mut KeyQueue {
        if self.lanes.len() >= self.purge_at.max(FEW) {
            self.lanes.retain(|_, lane| !lane.is_unused(now));
            self.purge_at = 2 * self.lanes.len();
        }
        let lane = self.lanes.entry(key.clone()).or_default();
        if lane.is_unused(now) {
            *lane = KeyQueue::default();
        }
        lane
    }
}

pub(super) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the client is closed or drains; make a new one",
    )
}

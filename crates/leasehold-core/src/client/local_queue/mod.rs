//! The local queue: of all tasks of this client that wait for a key, one contends for it at the
//! backend.
//!
//! Each key has a queue of its own, served first come, first served. The task at the head contends
//! at the backend. The remaining tasks wait here and send nothing. An exclusive holder stays at the
//! head until it releases. Readers and permit holders leave the queue once they are granted.
//! Readers behind a granted reader contend together.
//!
//! If the backend orders releases, the next task starts as soon as the release ahead of it has been
//! *sent*. That is fast, but it would starve other processes. A process therefore has a fairness
//! quota for each key: once [`key_queue::QUOTA`] is used up, the next attempt yields, which means
//! that the backend refuses it if another process waits.

mod key_queue;
mod position;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

pub(crate) use crate::client::local_queue::position::Place;
use crate::client::local_queue::{
    key_queue::{Admitted, Ahead, KeyQueue, Waiter},
    position::Queued,
};
use crate::{
    backend::request::Request,
    clock::{Clock, Timestamp},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    lease::signal::Signal,
    mode::Mode,
};

/// Unused queues are not removed while there are fewer than this.
const MIN_PURGE: usize = 64;

/// The queues of all keys of a client.
#[derive(Debug)]
pub(crate) struct LocalQueues {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<QueueKey, KeyQueue>,
    /// The number of queues at which unused ones are removed.
    purge_at: usize,
    next_id: u64,
    closed: bool,
}

/// The key of a queue. Permits have a namespace of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct QueueKey {
    key: LockKey,
    permit: bool,
}

impl QueueKey {
    fn new(key: &LockKey, mode: Mode) -> Self {
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

    /// Waits for a place at the head of the key's queue. Calls `waits_for_itself` if the same task
    /// still holds the place after a TTL. If the future is dropped, the request's signal has the
    /// reason for the wait.
    ///
    /// # Errors
    /// - [`ErrorKind::Closed`] if the client closes or drains.
    /// - The error of a task ahead, if the backend did not answer it for a TTL of this request.
    ///
    /// # Cancel safety
    /// Safe: a place that was assigned meanwhile passes to the next task.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        request: &Request,
        waits_for_itself: impl FnOnce(),
    ) -> Result<Place> {
        let (mode, who) = (request.mode(), Admitted::of(request));
        let (key, timeout) = (
            QueueKey::new(request.key(), mode),
            request.ttl().as_duration(),
        );
        let now = self.clock.now();
        let (id, receiver, own) = {
            let mut state = self.lock();
            if state.closed {
                return Err(closed());
            }
            let id = state.next_id;
            let queue = state.open(&key, now);
            if queue.waiters.is_empty() && queue.admits(mode) {
                let yields = queue.admit(mode, who, now);
                drop(state);
                return Ok(Place::new(self, key, mode, yields, request.signal()));
            }
            let own = queue.ahead == Ahead::One
                && queue
                    .last
                    .as_ref()
                    .is_some_and(|last| last.asker == who.asker);
            let (admit, receiver) = oneshot::channel();
            queue.waiters.push_back(Waiter {
                id,
                mode,
                who,
                since: now,
                timeout,
                admit,
            });
            state.next_id += 1;
            (id, receiver, own)
        };
        let mut queued = Queued {
            queues: self,
            key: Some(key),
            mode,
            id,
            receiver,
            answer: None,
        };
        if own
            && tokio::time::timeout(timeout, queued.admitted())
                .await
                .is_err()
        {
            waits_for_itself();
        }
        let yields = queued.admitted().await?;
        match queued.key.take() {
            Some(key) => Ok(Place::new(self, key, mode, yields, request.signal())),
            None => Err(closed()),
        }
    }

    /// Returns a place if no task is ahead. Its grant counts towards the fairness quota, so that a
    /// loop of attempts starves no waiter of another process. With `None` the caller makes its
    /// attempt outside of the queue. It should then yield to waiters, because a task of this
    /// process may be waiting.
    ///
    /// Waits for releases of this process that began earlier and are not yet sent, if they would
    /// make the attempt fail.
    pub(crate) async fn try_enter(self: &Arc<Self>, request: &Request) -> Result<Option<Place>> {
        let mode = request.mode();
        let key = QueueKey::new(request.key(), mode);
        let unsent = self.with_existing(&key, |queue| match mode {
            Mode::Exclusive => queue.releases(),
            Mode::Shared if queue.exclusive_releasing => queue.releases(),
            _ => None,
        });
        if let Some(sent) = unsent {
            // The sender is dropped when they are sent.
            drop(sent.await);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(closed());
        }
        let now = self.clock.now();
        let queue = state.open(&key, now);
        if queue.waiters.is_empty() && queue.admits(mode) {
            let yields = queue.admit(mode, Admitted::of(request), now);
            drop(state);
            return Ok(Some(Place::new(self, key, mode, yields, request.signal())));
        }
        Ok(None)
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

    /// Calls `read` on a key's queue, if there is one.
    fn with_existing<T>(
        &self,
        key: &QueueKey,
        read: impl FnOnce(&mut KeyQueue) -> Option<T>,
    ) -> Option<T> {
        self.lock().queues.get_mut(key).and_then(read)
    }

    /// Calls `change` on a key's queue with the current time, and records if the queue is idle
    /// afterwards.
    fn change<T>(&self, key: &QueueKey, change: impl FnOnce(&mut KeyQueue, Timestamp) -> T) -> T {
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the queue of a key. Creates one if there is none, or if its quota no longer counts.
    fn open(&mut self, key: &QueueKey, now: Timestamp) -> &mut KeyQueue {
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

fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the client is closed or drains; create a new one",
    )
}

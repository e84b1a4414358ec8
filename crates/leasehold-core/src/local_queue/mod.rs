//! The local queue: of all tasks of this process that want a key, one contends for it at the
//! backend.
//!
//! Each key has a queue of its own, served first come, first served. The task at the head contends
//! at the backend. The others wait here and cost the backend nothing. An exclusive holder stays at
//! the head until it releases. Readers and permit holders leave the queue once they are granted,
//! and readers behind a granted reader go together.
//!
//! The next task starts as soon as the release ahead of it has been *sent*, if the backend orders
//! releases. That is fast and would starve other processes. So a process has a fairness quota for
//! each key: once [`key_queue::QUOTA`] is used up, the next attempt yields, which means that the
//! backend refuses it if another process waits.

mod key_queue;
mod position;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

pub(crate) use crate::local_queue::position::Place;
use crate::local_queue::{
    key_queue::{Admitted, Ahead, KeyQueue, Ticket},
    position::Queued,
};
use crate::{
    backend::request::Request,
    clock::{Clock, Timestamp},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    mode::Mode,
    signal::Signal,
};

/// With fewer keys than this, those that are no longer used are not searched for.
const FEW: usize = 64;

/// The queues of all keys of a client.
#[derive(Debug)]
pub(crate) struct LocalQueues {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct State {
    lanes: HashMap<QueueKey, KeyQueue>,
    /// With this many keys, those that are no longer used are removed.
    purge_at: usize,
    next_ticket: u64,
    closed: bool,
}

/// Permits are a name space of their own.
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

    /// Waits for a place at the head of the key's queue. Calls `waits_for_itself` if the place is
    /// still held by the same task after a TTL. If the task leaves without a place, its signal
    /// says why it waited.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`]; or the error of a task ahead, if the backend did not answer it for as
    /// long as this task has waited.
    ///
    /// # Cancel safety
    /// Safe: a place that was given meanwhile is handed on.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        request: &Request,
        waits_for_itself: impl FnOnce(),
    ) -> Result<Place> {
        let (mode, who) = (request.mode(), Admitted::of(request));
        let (key, patience) = (
            QueueKey::new(request.key(), mode),
            request.ttl().as_duration(),
        );
        let now = self.clock.now();
        let (id, admitted, own) = {
            let mut state = self.lock();
            if state.closed {
                return Err(closed());
            }
            let id = state.next_ticket;
            let lane = state.open(&key, now);
            if lane.queue.is_empty() && lane.admits(mode) {
                let yields = lane.admit(mode, who, now);
                drop(state);
                return Ok(Place::new(self, key, mode, yields, request.signal()));
            }
            let own = lane.ahead == Ahead::One
                && lane
                    .last
                    .as_ref()
                    .is_some_and(|last| last.asker == who.asker);
            let (admit, admitted) = oneshot::channel();
            lane.queue.push_back(Ticket {
                id,
                mode,
                who,
                since: now,
                patience,
                admit,
            });
            state.next_ticket += 1;
            (id, admitted, own)
        };
        let mut queued = Queued {
            queues: self,
            key: Some(key),
            mode,
            id,
            admitted,
            answer: None,
        };
        if own && tokio::time::timeout(patience, queued.turn()).await.is_err() {
            waits_for_itself();
        }
        let yields = queued.turn().await?;
        match queued.key.take() {
            Some(key) => Ok(Place::new(self, key, mode, yields, request.signal())),
            None => Err(closed()),
        }
    }

    /// Returns a place if nobody is ahead. Its grant counts towards the fairness quota, so that a
    /// loop of tries starves no waiter of another process. With `None` the caller makes its attempt
    /// outside of the queue, and should yield to waiters, because a task of this process may be
    /// waiting.
    ///
    /// Waits only for releases of this process that began before and are not yet sent, and only if
    /// one of them is certain to be in the way.
    pub(crate) async fn try_enter(self: &Arc<Self>, request: &Request) -> Result<Option<Place>> {
        let mode = request.mode();
        let key = QueueKey::new(request.key(), mode);
        let in_the_way = self.look(&key, |lane| match mode {
            Mode::Exclusive => lane.releases(),
            Mode::Shared if lane.exclusive_releasing => lane.releases(),
            _ => None,
        });
        if let Some(sent) = in_the_way {
            // Its sender is dropped when they are sent.
            drop(sent.await);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(closed());
        }
        let now = self.clock.now();
        let lane = state.open(&key, now);
        if lane.queue.is_empty() && lane.admits(mode) {
            let yields = lane.admit(mode, Admitted::of(request), now);
            drop(state);
            return Ok(Some(Place::new(self, key, mode, yields, request.signal())));
        }
        Ok(None)
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
    fn look<T>(&self, key: &QueueKey, look: impl FnOnce(&mut KeyQueue) -> Option<T>) -> Option<T> {
        self.lock().lanes.get_mut(key).and_then(look)
    }

    /// Changes a key's queue, with the present in hand.
    fn change<T>(&self, key: &QueueKey, change: impl FnOnce(&mut KeyQueue, Timestamp) -> T) -> T {
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the queue of a key, a new one if there is none that still counts.
    fn open(&mut self, key: &QueueKey, now: Timestamp) -> &mut KeyQueue {
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

fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the client is closed or drains; make a new one",
    )
}

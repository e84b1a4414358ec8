//! [`LocalQueues`], the queues of all keys of a client, and [`Place`], a task at the head of one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    backend::request::Request,
    clock::{Clock, Timestamp},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    local_queue::key_queue::{Ahead, KeyQueue, QueuedTask, Waiter},
    mode::Mode,
    signal::Signal,
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
    /// - [`Closed`](crate::ErrorKind::Closed) if the client closes or drains.
    /// - The error of a task ahead, if the backend did not answer it for a TTL of this request.
    ///
    /// # Cancel safety
    /// Safe: a place that was assigned meanwhile passes to the next task.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        request: &Request,
        waits_for_itself: impl FnOnce(),
    ) -> Result<Place> {
        let (mode, who) = (request.mode(), QueuedTask::of(request));
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
            let yields = queue.admit(mode, QueuedTask::of(request), now);
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

    /// Calls `look` on a key's queue, if there is one.
    fn with_existing<T>(
        &self,
        key: &QueueKey,
        look: impl FnOnce(&mut KeyQueue) -> Option<T>,
    ) -> Option<T> {
        self.lock().queues.get_mut(key).and_then(look)
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

/// A place at the head of a key's queue. Dropping it passes the place to the next task.
#[derive(Debug)]
pub(crate) struct Place {
    queues: Arc<LocalQueues>,
    key: QueueKey,
    mode: Mode,
    yields: bool,
    signal: Arc<Signal>,
    stage: Stage,
    /// The time at which the release began.
    released: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Contending,
    Holding,
    /// The release with this number has begun.
    Releasing(u64),
    Gone,
}

impl Place {
    /// Creates a place whose task contends.
    fn new(
        queues: &Arc<LocalQueues>,
        key: QueueKey,
        mode: Mode,
        yields: bool,
        signal: &Arc<Signal>,
    ) -> Self {
        let signal = Arc::clone(signal);
        Self {
            queues: Arc::clone(queues),
            key,
            mode,
            yields,
            signal,
            stage: Stage::Contending,
            released: None,
        }
    }

    /// Returns whether the task's attempt is to yield to waiters of other processes.
    pub(crate) fn yields_to_waiters(&self) -> bool {
        self.yields
    }

    /// Records that the lock was granted.
    pub(crate) fn granted(&mut self) {
        self.stage = Stage::Holding;
        self.signal.set_held();
        let (mode, yielded) = (self.mode, self.yields);
        self.queues.change(&self.key, |queue, now| {
            if mode != Mode::Shared {
                queue.quota.count(yielded, now);
            }
            if mode != Mode::Exclusive {
                queue.stop_contending(mode, true, now);
            }
        });
    }

    /// Records that the acquisition failed because the backend does not answer.
    pub(crate) fn failed(self, error: &Error) {
        self.queues
            .change(&self.key, |queue, now| queue.fail(error, now));
    }

    /// Records that a release will be sent soon. `try_lock` waits for that.
    pub(crate) fn begin_release(&mut self) {
        let mode = self.mode;
        self.stage = Stage::Releasing(
            self.queues
                .change(&self.key, |queue, _| queue.begin_release(mode)),
        );
    }

    /// Records that the lock is no longer held, and that its release is about to be sent.
    pub(crate) fn released(&mut self) {
        self.released = Some(self.queues.clock.now());
    }

    /// Records that the release is sent. A later acquisition takes effect after it, so the next
    /// task may start.
    pub(crate) fn release_sent(&mut self) {
        let (stage, mode) = (self.stage, self.mode);
        self.queues.change(&self.key, |queue, now| {
            if let Stage::Releasing(number) = stage {
                queue.release_sent(number, mode);
            }
            self.record_held(queue, now);
            if mode == Mode::Exclusive {
                queue.stop_contending(Mode::Exclusive, false, now);
            }
        });
        self.stage = Stage::Gone;
    }

    /// Records in the queue when this task was last known to hold the lock or to be refused.
    fn record_held(&self, queue: &mut KeyQueue, now: Timestamp) {
        if self.stage != Stage::Contending || self.signal.is_contended() {
            queue.held_until = queue.held_until.max(Some(self.released.unwrap_or(now)));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (stage, mode) = (self.stage, self.mode);
        let ahead = match stage {
            Stage::Gone => return,
            Stage::Contending => true,
            Stage::Holding | Stage::Releasing(_) => mode == Mode::Exclusive,
        };
        self.queues.change(&self.key, |queue, now| {
            if let Stage::Releasing(number) = stage {
                queue.release_sent(number, mode);
            }
            if ahead {
                self.record_held(queue, now);
                queue.stop_contending(mode, false, now);
            }
        });
    }
}

/// A task that waits in a key's queue. Dropping it leaves the queue, or passes an assigned place to
/// the next task.
struct Queued<'a> {
    queues: &'a LocalQueues,
    key: Option<QueueKey>,
    mode: Mode,
    id: u64,
    receiver: oneshot::Receiver<Result<bool>>,
    /// The answer, once it was received. The channel returns it only once.
    answer: Option<Result<bool>>,
}

impl Queued<'_> {
    /// Waits until the task is admitted. Returns whether its attempt is to yield to waiters of
    /// other processes. May be dropped and called again, also after it completed.
    async fn admitted(&mut self) -> Result<bool> {
        match self.answer.clone() {
            Some(answer) => answer,
            None => {
                // The sender is dropped when the client closes.
                let answer = (&mut self.receiver).await.unwrap_or_else(|_| Err(closed()));
                self.answer.insert(answer).clone()
            }
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let (id, mode, receiver, received) = (
            self.id,
            self.mode,
            &mut self.receiver,
            matches!(self.answer, Some(Ok(_))),
        );
        self.queues.change(&key, |state, now| {
            // The queue is sorted by id, and admissions are sent under the same mutex.
            if let Ok(at) = state.waiters.binary_search_by_key(&id, |waiter| waiter.id) {
                if let Some(waiter) = state.waiters.remove(at) {
                    state.record_reason(&waiter, now);
                }
            } else if received || matches!(receiver.try_recv(), Ok(Ok(_))) {
                state.stop_contending(mode, false, now);
            }
            state.advance(now);
        });
    }
}

fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the client is closed or drains; create a new one",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::TestClock;

    fn request(key: &str) -> Request {
        Request::new(LockKey::new(key).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn queues_of_keys_that_are_no_longer_used_are_removed() {
        let queues = Arc::new(LocalQueues::new(Arc::new(TestClock::new())));
        let used = queues.try_enter(&request("used")).await.unwrap().unwrap();
        for key in 0..10_000 {
            let place = queues.try_enter(&request(&format!("{key}"))).await;
            drop(place.unwrap().unwrap());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let kept = queues.lock().queues.len();
        assert!(kept < 4 * MIN_PURGE, "{kept} queues are kept");
        let again = queues.try_enter(&request("used")).await.unwrap();
        assert!(again.is_none(), "the queue of a key in use is kept");
        drop(used);
    }
}

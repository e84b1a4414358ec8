//! [`Place`], a task at the head of a key's queue, and [`Queued`], a task that waits for it.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{
    clock::Timestamp,
    error::{Error, Result},
    local_queue::{
        key_queue::KeyQueue,
        queues::{LocalQueues, QueueKey, closed},
    },
    mode::Mode,
    signal::Signal,
};

/// A task that waits in a key's queue. Dropping it leaves the queue, or passes an assigned place to
/// the next task.
pub(super) struct Queued<'a> {
    pub(super) queues: &'a LocalQueues,
    pub(super) key: Option<QueueKey>,
    pub(super) mode: Mode,
    pub(super) id: u64,
    pub(super) receiver: oneshot::Receiver<Result<bool>>,
    /// The answer, once it was received. The channel returns it only once.
    pub(super) answer: Option<Result<bool>>,
}

impl Queued<'_> {
    /// Waits until the task is admitted. Returns whether its attempt is to yield to waiters of
    /// other processes. May be dropped and called again, also after it completed.
    pub(super) async fn admitted(&mut self) -> Result<bool> {
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
    pub(super) fn new(
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
}

impl Place {
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

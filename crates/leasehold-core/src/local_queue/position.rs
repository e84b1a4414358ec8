//! [`Place`]: a task at the head of a key's queue; and [`Queued`], a task on its way there.

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

/// A task that waits in a key's queue. Dropped, it leaves the queue, or hands on the place that it
/// was given.
pub(super) struct Queued<'a> {
    pub(super) queues: &'a LocalQueues,
    pub(super) key: Option<QueueKey>,
    pub(super) mode: Mode,
    pub(super) id: u64,
    pub(super) admitted: oneshot::Receiver<Result<bool>>,
    /// The answer, once it was received: the channel gives it once.
    pub(super) answer: Option<Result<bool>>,
}

impl Queued<'_> {
    /// Waits until it is admitted. Returns whether its attempt is to yield to waiters of other
    /// processes. May be dropped and called again, also after it was answered.
    pub(super) async fn turn(&mut self) -> Result<bool> {
        match self.answer.clone() {
            Some(answer) => answer,
            None => {
                // Its sender is dropped when the client is closed.
                let answer = (&mut self.admitted).await.unwrap_or_else(|_| Err(closed()));
                self.answer.insert(answer).clone()
            }
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let (id, mode, admitted, received) = (
            self.id,
            self.mode,
            &mut self.admitted,
            matches!(self.answer, Some(Ok(_))),
        );
        self.queues.change(&key, |state, now| {
            // Numbers in a queue grow, and admissions are sent under the same mutex.
            if let Ok(at) = state.queue.binary_search_by_key(&id, |ticket| ticket.id) {
                if let Some(ticket) = state.queue.remove(at) {
                    state.tell(&ticket, now);
                }
            } else if received || matches!(admitted.try_recv(), Ok(Ok(_))) {
                state.stop_contending(mode, false, now);
            }
            state.advance(now);
        });
    }
}

/// A place at the head of a key's queue. Dropped, it is handed on.
#[derive(Debug)]
pub(crate) struct Place {
    queues: Arc<LocalQueues>,
    key: QueueKey,
    mode: Mode,
    yields: bool,
    signal: Arc<Signal>,
    stage: Stage,
    /// When its release began.
    released: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Contending,
    Holding,
    /// Its release has begun; its number.
    Releasing(u64),
    Gone,
}

impl Place {
    /// Returns a place whose task contends.
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

    /// Returns whether its attempt is to yield to waiters of other processes.
    pub(crate) fn yields_to_waiters(&self) -> bool {
        self.yields
    }

    /// Notes that the lock was granted.
    pub(crate) fn granted(&mut self) {
        self.stage = Stage::Holding;
        self.signal.set_held();
        let (mode, yielded) = (self.mode, self.yields);
        self.queues.change(&self.key, |lane, now| {
            if mode != Mode::Shared {
                lane.quota.count(yielded, now);
            }
            if mode != Mode::Exclusive {
                lane.stop_contending(mode, true, now);
            }
        });
    }

    /// Reports that the acquisition failed because the backend does not answer.
    pub(crate) fn failed(self, error: &Error) {
        self.queues
            .change(&self.key, |lane, now| lane.fail(error, now));
    }

    /// Reports that a release will be sent soon. `try_lock` waits for that.
    pub(crate) fn begin_release(&mut self) {
        let mode = self.mode;
        self.stage = Stage::Releasing(
            self.queues
                .change(&self.key, |lane, _| lane.begin_release(mode)),
        );
    }

    /// Reports that the lock is no longer held, and that its release is about to be sent.
    pub(crate) fn released(&mut self) {
        self.released = Some(self.queues.clock.now());
    }

    /// Reports that the release is sent. A later acquisition comes after it, so the next task may
    /// start.
    pub(crate) fn release_sent(&mut self) {
        let (stage, mode) = (self.stage, self.mode);
        self.queues.change(&self.key, |lane, now| {
            if let Stage::Releasing(number) = stage {
                lane.release_sent(number, mode);
            }
            self.note_held(lane, now);
            if mode == Mode::Exclusive {
                lane.stop_contending(Mode::Exclusive, false, now);
            }
        });
        self.stage = Stage::Gone;
    }
}

impl Place {
    /// Notes in its lane until when the lock was held, or refused.
    fn note_held(&self, lane: &mut KeyQueue, now: Timestamp) {
        if self.stage != Stage::Contending || self.signal.is_contended() {
            lane.held_until = lane.held_until.max(Some(self.released.unwrap_or(now)));
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
        self.queues.change(&self.key, |lane, now| {
            if let Stage::Releasing(number) = stage {
                lane.release_sent(number, mode);
            }
            if ahead {
                self.note_held(lane, now);
                lane.stop_contending(mode, false, now);
            }
        });
    }
}

//! [`KeyQueue`]: the waiters for one key in this process, the tasks ahead of them, and the key's
//! fairness quota.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    backend::request::Request,
    clock::Timestamp,
    error::{Error, Result},
    mode::Mode,
    runtime::Asker,
    signal::Signal,
};

/// The fairness quota of a process for each key. After it the process yields to the waiters of
/// other processes.
///
/// It is small enough that a waiter sees fewer than 50 hand-offs before its grant, even beside
/// three other processes of which some overtake it. It is large enough that yielding costs little.
pub(super) const QUOTA: Quota = Quota {
    grants: 4,
    time: Duration::from_millis(50),
};

/// A number of consecutive grants, and the time that they may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    grants: u32,
    time: Duration,
}

/// The local queue of one key.
#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    pub(super) ahead: Ahead,
    pub(super) waiters: VecDeque<Waiter>,
    /// The number of releases that have begun and are not yet sent.
    pub(super) releasing: usize,
    /// Whether one of them releases an exclusive lock.
    pub(super) exclusive_releasing: bool,
    /// The number of releases that have ever begun.
    pub(super) releases_begun: u64,
    /// The attempts that wait for releases to be sent.
    pub(super) release_waits: Vec<ReleaseWait>,
    pub(super) quota: QuotaUse,
    /// The time at which the queue became idle, if it is idle.
    idle_since: Timestamp,
    /// The task that was admitted last.
    pub(super) last: Option<QueuedTask>,
    /// The time until which a task that has left is known to have held the lock.
    pub(super) held_until: Option<Timestamp>,
}

/// A task that waits in the queue, or that was admitted.
#[derive(Clone, Debug)]
pub(super) struct QueuedTask {
    pub(super) asker: Asker,
    pub(super) signal: Arc<Signal>,
}

impl QueuedTask {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            asker: Asker::current(),
            signal: Arc::clone(request.signal()),
        }
    }
}

/// An attempt that waits for the releases that began before it.
#[derive(Debug)]
pub(super) struct ReleaseWait {
    /// The number of the last of these releases.
    last: u64,
    /// The number of these releases that are not yet sent.
    left: usize,
    /// Dropped when all of them are sent, which completes the receiver.
    _notify: oneshot::Sender<()>,
}

/// The tasks ahead of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ahead {
    #[default]
    Nothing,
    /// One task contends, or holds the lock exclusively.
    One,
    /// This many readers contend after one of them was granted. More may join.
    Readers(usize),
}

/// A task that waits in the queue.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) id: u64,
    pub(super) mode: Mode,
    pub(super) who: QueuedTask,
    pub(super) since: Timestamp,
    /// How long the task waits while the backend does not answer.
    pub(super) timeout: Duration,
    /// Receives whether the attempt is to yield to waiters of other processes.
    pub(super) admit: oneshot::Sender<Result<bool>>,
}

/// The part of its [`QUOTA`] that this process has used for one key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QuotaUse {
    grants: u32,
    /// The time of the first of these grants.
    since: Timestamp,
}

impl QuotaUse {
    /// Returns whether the next attempt is to yield.
    fn is_used_up(self, now: Timestamp) -> bool {
        self.grants >= QUOTA.grants || self.grants > 0 && now.since(self.since) >= QUOTA.time
    }

    /// Counts a grant. The grant of an attempt that yielded is the first of a new quota.
    pub(super) fn count(&mut self, yielded: bool, now: Timestamp) {
        if yielded || self.grants == 0 {
            *self = Self {
                grants: 0,
                since: now,
            };
        }
        self.grants += 1;
    }
}

impl KeyQueue {
    pub(super) fn is_idle(&self) -> bool {
        self.ahead == Ahead::Nothing
            && self.waiters.is_empty()
            && self.releasing == 0
            && self.release_waits.is_empty()
    }

    /// Records that the queue has become idle. It is kept for a while, because its quota counts.
    pub(super) fn rest(&mut self, now: Timestamp) {
        (self.last, self.held_until, self.idle_since) = (None, None, now);
    }

    /// Returns whether the queue has been idle for so long that its quota no longer counts.
    pub(super) fn is_unused(&self, now: Timestamp) -> bool {
        self.is_idle() && now.since(self.idle_since) >= QUOTA.time
    }

    pub(super) fn admits(&self, mode: Mode) -> bool {
        match self.ahead {
            Ahead::Nothing => true,
            Ahead::One => false,
            Ahead::Readers(_) => mode == Mode::Shared,
        }
    }

    /// Admits a task. Returns whether its attempt is to yield to waiters of other processes.
    pub(super) fn admit(&mut self, mode: Mode, who: QueuedTask, now: Timestamp) -> bool {
        self.last = Some(who);
        self.ahead = match (self.ahead, mode) {
            (Ahead::Readers(count), Mode::Shared) => Ahead::Readers(count + 1),
            _ => Ahead::One,
        };
        // A reader need not yield, because the backend lets no reader overtake a waiting writer.
        mode != Mode::Shared && self.quota.is_used_up(now)
    }

    /// Admits the tasks at the front of the queue that may contend now.
    pub(super) fn advance(&mut self, now: Timestamp) {
        while self
            .waiters
            .front()
            .is_some_and(|front| self.admits(front.mode))
        {
            let Some(waiter) = self.waiters.pop_front() else {
                return;
            };
            let before = (self.ahead, self.last.clone());
            self.record_reason(&waiter, now);
            let yields = self.admit(waiter.mode, waiter.who, now);
            if waiter.admit.send(Ok(yields)).is_err() {
                // The task has stopped waiting, so the admission is undone.
                (self.ahead, self.last) = before;
            }
        }
    }

    /// Records in the signal of a task that waited here whether it waited for a lock that was held
    /// or for a backend that fails.
    pub(super) fn record_reason(&self, waiter: &Waiter, now: Timestamp) {
        let ahead = self.last.as_ref().map(|last| &last.signal);
        let held = self.held_until.is_some_and(|until| until > waiter.since)
            || ahead.is_some_and(|ahead| ahead.excludes_others_after(waiter.since));
        if held {
            waiter.who.signal.set_contended();
        } else if let Some(fault) = ahead.and_then(|ahead| ahead.fault()) {
            waiter.who.signal.note_fault(fault, now);
        }
    }

    /// Ends the waits that have lasted for a TTL while the backend did not answer the task ahead.
    /// Otherwise each of these tasks would wait for the backend, one after the other.
    pub(super) fn fail(&mut self, error: &Error, now: Timestamp) {
        let (failed, waiting) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|waiter| now.since(waiter.since) >= waiter.timeout);
        self.waiters = waiting.into();
        for waiter in failed {
            // The task may have stopped waiting.
            drop(waiter.admit.send(Err(error.clone())));
        }
    }

    /// Records that a task no longer contends.
    pub(super) fn stop_contending(&mut self, mode: Mode, granted: bool, now: Timestamp) {
        self.ahead = match (self.ahead, mode) {
            (Ahead::Readers(count), Mode::Shared) => Ahead::Readers(count.saturating_sub(1)),
            (_, Mode::Shared) if granted => Ahead::Readers(0),
            _ => Ahead::Nothing,
        };
        self.advance(now);
        if self.ahead == Ahead::Readers(0) {
            self.ahead = Ahead::Nothing;
            self.advance(now);
        }
    }

    /// Records that a release begins. Returns its number.
    pub(super) fn begin_release(&mut self, mode: Mode) -> u64 {
        self.releases_begun += 1;
        self.releasing += 1;
        self.exclusive_releasing |= mode == Mode::Exclusive;
        self.releases_begun
    }

    /// Records that the release with this number is sent.
    pub(super) fn release_sent(&mut self, number: u64, mode: Mode) {
        self.releasing = self.releasing.saturating_sub(1);
        self.exclusive_releasing &= mode != Mode::Exclusive;
        self.release_waits.retain_mut(|waiting| {
            waiting.left -= usize::from(number <= waiting.last);
            waiting.left > 0
        });
    }

    /// Returns a receiver that completes when all releases that have begun by now are sent, or
    /// `None` if all are sent.
    pub(super) fn releases(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.releasing == 0 {
            return None;
        }
        let (notify, sent) = oneshot::channel();
        self.release_waits.push(ReleaseWait {
            last: self.releases_begun,
            left: self.releasing,
            _notify: notify,
        });
        Some(sent)
    }
}

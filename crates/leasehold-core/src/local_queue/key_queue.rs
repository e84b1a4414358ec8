//! [`KeyQueue`]: the queue of one key, what is ahead of it, and the key's fairness quota.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    asker::Asker,
    backend::request::Request,
    clock::Timestamp,
    error::{Error, Result},
    mode::Mode,
    signal::Signal,
};

/// The grants of one key that a process may have in a row before it yields to the waiters of other
/// processes. Small enough that a waiter sees fewer than 50 hand-offs pass by, also beside three
/// other processes and where some of them overtake it. Large enough that yielding costs little.
pub(super) const QUOTA: Quota = Quota {
    grants: 4,
    time: Duration::from_millis(50),
};

/// A number of grants, and the time that they may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    grants: u32,
    time: Duration,
}

#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    pub(super) ahead: Ahead,
    pub(super) queue: VecDeque<Ticket>,
    /// Releases that have begun and are not yet sent.
    pub(super) releasing: usize,
    /// Whether one of them is of an exclusive lock.
    pub(super) exclusive_releasing: bool,
    /// How many releases have begun, ever.
    pub(super) begun: u64,
    /// Attempts that wait for releases.
    pub(super) tries: Vec<Try>,
    pub(super) quota: FairnessQuota,
    /// When it became idle, if it is.
    idle_since: Timestamp,
    /// The task that was admitted last.
    pub(super) last: Option<Admitted>,
    /// Until when the lock was known to be held, by those who were ahead and have left.
    pub(super) held_until: Option<Timestamp>,
}

/// A task that was admitted.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    pub(super) asker: Asker,
    pub(super) signal: Arc<Signal>,
}

impl Admitted {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            asker: Asker::current(),
            signal: Arc::clone(request.signal()),
        }
    }
}

/// An attempt that waits for the releases that began before it.
#[derive(Debug)]
pub(super) struct Try {
    /// The number of the last one of them.
    last: u64,
    /// How many of them are not yet sent.
    left: usize,
    /// Dropped when all of them are sent.
    _tell: oneshot::Sender<()>,
}

/// The tasks ahead of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ahead {
    #[default]
    Nothing,
    /// One task contends, or holds exclusively.
    One,
    /// This many readers contend after one of them was granted; more may join.
    Readers(usize),
}

#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: u64,
    pub(super) mode: Mode,
    pub(super) who: Admitted,
    pub(super) since: Timestamp,
    /// For how long it waits for a backend that does not answer.
    pub(super) patience: Duration,
    /// Receives whether the attempt is to yield to waiters of other processes.
    pub(super) admit: oneshot::Sender<Result<bool>>,
}

/// The part of its [`QUOTA`] for one key that this process has used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FairnessQuota {
    grants: u32,
    /// When the first of them was.
    since: Timestamp,
}

impl FairnessQuota {
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
            && self.queue.is_empty()
            && self.releasing == 0
            && self.tries.is_empty()
    }

    /// Notes that the queue has become idle. It is kept for a while, for its quota.
    pub(super) fn rest(&mut self, now: Timestamp) {
        (self.last, self.held_until, self.idle_since) = (None, None, now);
    }

    /// Returns whether it has been idle for so long that its quota no longer counts.
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

    /// Lets one go ahead. Returns whether its attempt is to yield to waiters of other processes.
    pub(super) fn admit(&mut self, mode: Mode, who: Admitted, now: Timestamp) -> bool {
        self.last = Some(who);
        self.ahead = match (self.ahead, mode) {
            (Ahead::Readers(count), Mode::Shared) => Ahead::Readers(count + 1),
            _ => Ahead::One,
        };
        // A reader need not yield: the backend lets none overtake a waiting writer.
        mode != Mode::Shared && self.quota.is_used_up(now)
    }

    /// Admits those at the front of the queue who may go now.
    pub(super) fn advance(&mut self, now: Timestamp) {
        while self
            .queue
            .front()
            .is_some_and(|front| self.admits(front.mode))
        {
            let Some(ticket) = self.queue.pop_front() else {
                return;
            };
            let before = (self.ahead, self.last.clone());
            self.tell(&ticket, now);
            let yields = self.admit(ticket.mode, ticket.who, now);
            if ticket.admit.send(Ok(yields)).is_err() {
                // It has stopped waiting: as if it had never been.
                (self.ahead, self.last) = before;
            }
        }
    }

    /// Notes in the signal of a task that waited here whether it has waited for a lock that was
    /// held or for a backend that fails.
    pub(super) fn tell(&self, ticket: &Ticket, now: Timestamp) {
        let ahead = self.last.as_ref().map(|last| &last.signal);
        let held = self.held_until.is_some_and(|until| until > ticket.since)
            || ahead.is_some_and(|ahead| ahead.excludes_others_after(ticket.since));
        if held {
            ticket.who.signal.set_contended();
        } else if let Some(fault) = ahead.and_then(|ahead| ahead.fault()) {
            ticket.who.signal.note_fault(fault, now);
        }
    }

    /// Ends the waits that are as old as their TTL, because the backend has not answered the task
    /// ahead. Otherwise each of them would wait for the backend, one after the other.
    pub(super) fn fail(&mut self, error: &Error, now: Timestamp) {
        let (failed, waiting) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition::<Vec<_>, _>(|ticket| now.since(ticket.since) >= ticket.patience);
        self.queue = waiting.into();
        for ticket in failed {
            // It may have stopped waiting.
            drop(ticket.admit.send(Err(error.clone())));
        }
    }

    /// Notes that a task no longer contends.
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

    /// Notes that a release begins. Returns its number.
    pub(super) fn begin_release(&mut self, mode: Mode) -> u64 {
        self.begun += 1;
        self.releasing += 1;
        self.exclusive_releasing |= mode == Mode::Exclusive;
        self.begun
    }

    /// Notes that the release of this number is sent.
    pub(super) fn release_sent(&mut self, number: u64, mode: Mode) {
        self.releasing = self.releasing.saturating_sub(1);
        self.exclusive_releasing &= mode != Mode::Exclusive;
        self.tries.retain_mut(|waiting| {
            waiting.left -= usize::from(number <= waiting.last);
            waiting.left > 0
        });
    }

    /// Completes when all releases are sent that have begun by now. `None` if there are none.
    pub(super) fn releases(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.releasing == 0 {
            return None;
        }
        let (tell, sent) = oneshot::channel();
        self.tries.push(Try {
            last: self.begun,
            left: self.releasing,
            _tell: tell,
        });
        Some(sent)
    }
}

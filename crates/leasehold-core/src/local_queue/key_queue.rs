//! [`KeyQueue`]: the queue of one key, and what is ahead of it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    asker::Asker,
    clock::Timestamp,
    error::{Error, Result},
    mode::Mode,
    request::Request,
    signal::Signal,
};

/// Turns within the process before others are let in: few enough that a waiter waits for fewer than
/// 50 hand-offs also beside three other processes and where one overtakes it now and then, many
/// enough that yielding costs little.
pub(super) const TURNS: u32 = 4;
/// And not for longer than this.
pub(super) const TURN_TIME: Duration = Duration::from_millis(50);
/// Where nobody waits, a row is twice as long as the one before, at most this often: to look costs
/// a little, too.
const DOUBLED: u32 = 2;

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
    pub(super) turns: Turns,
    /// Who was admitted last.
    pub(super) last: Option<Admitted>,
    /// Until when the lock was known to be held, by those who were ahead and have left.
    pub(super) held_until: Option<Timestamp>,
}

/// Who was admitted.
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
    /// Dropping it tells.
    _tell: oneshot::Sender<()>,
}

/// What the queue waits for.
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
    pub(super) admit: oneshot::Sender<Result<Turn>>,
}

/// How the one who goes ahead is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// Letting other processes go first.
    pub(super) yielding: bool,
    /// The next after it goes yielding.
    pub(super) last: bool,
}

/// Turns in a row, and when the first was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    count: u32,
    since: Timestamp,
    /// How often the row was doubled.
    doubled: u32,
}

impl Turns {
    pub(super) fn are_over(self, now: Timestamp) -> bool {
        self.count > 0 && (self.count >= self.row() || now.since(self.since) >= TURN_TIME)
    }

    fn row(self) -> u32 {
        TURNS << self.doubled
    }

    /// Nobody else waits: another row, and a longer one.
    pub(super) fn begin_alone(&mut self) {
        *self = Self {
            doubled: DOUBLED.min(self.doubled + 1),
            ..Self::default()
        };
    }

    /// The first turn of a row begins only now.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.since = now;
    }

    /// The next turn is to be yielding.
    pub(super) fn end(&mut self, now: Timestamp) {
        *self = Self {
            count: self.row(),
            since: now,
            ..*self
        };
    }

    /// Takes a turn. One that is yielding begins a new row.
    pub(super) fn take(&mut self, now: Timestamp) -> Turn {
        let yielding = self.are_over(now);
        if yielding {
            *self = Self::default();
        }
        if self.count == 0 {
            self.since = now;
        }
        self.count += 1;
        Turn {
            yielding,
            last: self.count >= self.row(),
        }
    }
}

impl KeyQueue {
    pub(super) fn is_idle(&self) -> bool {
        self.ahead == Ahead::Nothing
            && self.queue.is_empty()
            && self.releasing == 0
            && self.tries.is_empty()
    }

    pub(super) fn admits(&self, mode: Mode) -> bool {
        match self.ahead {
            Ahead::Nothing => true,
            Ahead::One => false,
            Ahead::Readers(_) => mode == Mode::Shared,
        }
    }

    /// Lets one go ahead.
    pub(super) fn admit(&mut self, mode: Mode, who: Admitted, now: Timestamp) -> Turn {
        self.last = Some(who);
        self.ahead = match (self.ahead, mode) {
            (Ahead::Readers(count), Mode::Shared) => Ahead::Readers(count + 1),
            _ => Ahead::One,
        };
        // A reader needs no yielding: the backend lets none overtake a waiting writer.
        if mode == Mode::Shared {
            Turn::default()
        } else {
            self.turns.take(now)
        }
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
            let before = (self.ahead, self.turns, self.last.clone());
            self.tell(&ticket, now);
            let turn = self.admit(ticket.mode, ticket.who, now);
            if ticket.admit.send(Ok(turn)).is_err() {
                // It has stopped waiting: as if it had never been.
                (self.ahead, self.turns, self.last) = before;
            }
        }
    }

    /// Tells one that waited here what it has waited for: for a lock that was held, or for a
    /// backend that fails.
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

    /// The backend has not answered the one ahead for too long. This is also told to those who have
    /// waited here for as long as they would have waited for the backend: otherwise each of them
    /// would, one after the other.
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

    /// Who contended does so no longer.
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

    /// A release begins. Returns its number.
    pub(super) fn begin_release(&mut self, mode: Mode) -> u64 {
        self.begun += 1;
        self.releasing += 1;
        self.exclusive_releasing |= mode == Mode::Exclusive;
        self.begun
    }

    /// The release of this number is sent.
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

//! [`Lane`]: the queue of one key, and what is ahead of it.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::oneshot, task};

use crate::{clock::Moment, mode::Mode};

/// Turns within the process before others are let in: few enough that a waiter waits for fewer than 50 hand-offs also beside
/// three other processes and where one overtakes it now and then, many enough that courtesy costs little.
pub(super) const TURNS: u32 = 4;
/// And not for longer than this.
pub(super) const TURN_TIME: Duration = Duration::from_millis(50);
/// Where nobody waits, a row is twice as long as the one before, at most this often: to look costs a little, too.
const DOUBLED: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) ahead: Ahead,
    pub(super) queue: VecDeque<Ticket>,
    /// Releases that have begun and are not yet sent.
    pub(super) releasing: usize,
    /// `try_lock`s that wait for `releasing` to be over.
    pub(super) tries: Vec<oneshot::Sender<()>>,
    pub(super) turns: Turns,
    /// The task that was admitted last.
    pub(super) task: Option<task::Id>,
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
    pub(super) task: Option<task::Id>,
    pub(super) admit: oneshot::Sender<Turn>,
}

/// How the one who goes ahead is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// Letting other processes go first.
    pub(super) courteous: bool,
    /// The next after it goes courteously.
    pub(super) last: bool,
}

/// Turns in a row, and when the first was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    count: u32,
    since: Moment,
    /// How often the row was doubled.
    doubled: u32,
}

impl Turns {
    pub(super) fn are_over(self, now: Moment) -> bool {
        self.count > 0 && (self.count >= self.row() || now.since(self.since) >= TURN_TIME)
    }

    fn row(self) -> u32 {
        TURNS << self.doubled
    }

    /// Nobody else waits: another row, and a longer one.
    pub(super) fn begin_alone(&mut self) {
        *self = Self { doubled: DOUBLED.min(self.doubled + 1), ..Self::default() };
    }

    /// The first turn of a row begins only now.
    pub(super) fn begin(&mut self, now: Moment) {
        self.since = now;
    }

    /// Takes a turn. One that is courteous begins a new row.
    pub(super) fn take(&mut self, now: Moment) -> Turn {
        let courteous = self.are_over(now);
        if courteous {
            *self = Self::default();
        }
        if self.count == 0 {
            self.since = now;
        }
        self.count += 1;
        Turn { courteous, last: self.count >= self.row() }
    }
}

impl Lane {
    pub(super) fn is_idle(&self) -> bool {
        self.ahead == Ahead::Nothing && self.queue.is_empty() && self.releasing == 0 && self.tries.is_empty()
    }

    pub(super) fn admits(&self, mode: Mode) -> bool {
        match self.ahead {
            Ahead::Nothing => true,
            Ahead::One => false,
            Ahead::Readers(_) => mode == Mode::Shared,
        }
    }

    /// Lets one go ahead.
    pub(super) fn admit(&mut self, mode: Mode, task: Option<task::Id>, now: Moment) -> Turn {
        self.task = task;
        self.ahead = match (self.ahead, mode) {
            (Ahead::Readers(count), Mode::Shared) => Ahead::Readers(count + 1),
            _ => Ahead::One,
        };
        // A reader needs no courtesy: the backend lets none overtake a waiting writer.
        if mode == Mode::Shared { Turn::default() } else { self.turns.take(now) }
    }

    /// Admits those at the front of the queue who may go now.
    pub(super) fn advance(&mut self, now: Moment) {
        while self.queue.front().is_some_and(|front| self.admits(front.mode)) {
            let Some(ticket) = self.queue.pop_front() else { return };
            let before = (self.ahead, self.turns, self.task);
            let turn = self.admit(ticket.mode, ticket.task, now);
            if ticket.admit.send(turn).is_err() {
                // It has stopped waiting: as if it had never been.
                (self.ahead, self.turns, self.task) = before;
            }
        }
    }

    /// Who contended does so no longer.
    pub(super) fn stop_contending(&mut self, mode: Mode, granted: bool, now: Moment) {
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

    pub(super) fn release_sent(&mut self) {
        self.releasing = self.releasing.saturating_sub(1);
        if self.releasing == 0 {
            // Dropping the senders tells.
            self.tries.clear();
        }
    }
}

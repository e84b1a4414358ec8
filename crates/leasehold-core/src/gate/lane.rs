//! [`Lane`]: the queue of one key, and what is ahead of it.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::oneshot, task};

use crate::{clock::Moment, mode::Mode};

/// Turns within the process before others are let in: few enough that a waiter waits for fewer than 50 hand-offs also beside
/// three other processes and where one overtakes it now and then, many enough that courtesy costs little.
pub(super) const TURNS: u32 = 4;
/// And not for longer than this.
pub(super) const TURN_TIME: Duration = Duration::from_millis(50);

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
    /// Carries whether to be courteous.
    pub(super) admit: oneshot::Sender<bool>,
}

/// Turns in a row, and when the first was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    count: u32,
    since: Moment,
}

impl Turns {
    pub(super) fn are_over(self, now: Moment) -> bool {
        self.count > 0 && (self.count >= TURNS || now.since(self.since) >= TURN_TIME)
    }

    /// The first turn of a row begins only now.
    pub(super) fn begin(&mut self, now: Moment) {
        self.since = now;
    }

    /// Takes a turn; `true` if it is one to be courteous in, which begins a new row.
    pub(super) fn take(&mut self, now: Moment) -> bool {
        let over = self.are_over(now);
        if over {
            self.count = 0;
        }
        if self.count == 0 {
            self.since = now;
        }
        self.count += 1;
        over
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

    /// Lets one go ahead; whether it is to be courteous.
    pub(super) fn admit(&mut self, mode: Mode, task: Option<task::Id>, now: Moment) -> bool {
        self.task = task;
        self.ahead = match (self.ahead, mode) {
            (Ahead::Readers(count), Mode::Shared) => Ahead::Readers(count + 1),
            _ => Ahead::One,
        };
        // A reader needs no courtesy: the backend lets none overtake a waiting writer.
        mode != Mode::Shared && self.turns.take(now)
    }

    /// Admits those at the front of the queue who may go now.
    pub(super) fn advance(&mut self, now: Moment) {
        while self.queue.front().is_some_and(|front| self.admits(front.mode)) {
            let Some(ticket) = self.queue.pop_front() else { return };
            let before = (self.ahead, self.turns, self.task);
            let courteous = self.admit(ticket.mode, ticket.task, now);
            if ticket.admit.send(courteous).is_err() {
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

//! [`Place`]: a task at the head of a lane; and [`Queued`], one on its way there.

use std::sync::Arc;

use tokio::sync::oneshot::{self, error::RecvError};

use super::{Gates, Hashed, closed, lane::Turn};
use crate::{error::Result, mode::Mode};

/// A task that waits in a lane's queue. Dropped, it leaves the queue, or hands on the place that it was given.
pub(super) struct Queued<'a> {
    pub(super) gates: &'a Gates,
    pub(super) lane: Option<Hashed>,
    pub(super) id: u64,
    pub(super) admitted: oneshot::Receiver<Turn>,
    /// The answer, once it was received: the channel gives it once. An error says that the client was closed.
    pub(super) answer: Option<Result<Turn, RecvError>>,
}

impl Queued<'_> {
    /// Waits for its turn. May be dropped and called again, also after it was answered.
    pub(super) async fn turn(&mut self) -> Result<Turn> {
        let answer = match self.answer.clone() {
            Some(answer) => answer,
            None => self.answer.insert((&mut self.admitted).await).clone(),
        };
        answer.map_err(|_| closed())
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        let (id, admitted, received) = (self.id, &mut self.admitted, matches!(self.answer, Some(Ok(_))));
        self.gates.change(&lane, |state, now| {
            // Numbers in a queue grow, and admissions are sent under the same mutex.
            if let Ok(at) = state.queue.binary_search_by_key(&id, |ticket| ticket.id) {
                state.queue.remove(at);
            } else if received || admitted.try_recv().is_ok() {
                state.stop_contending(lane.mode, false, now);
            }
            state.advance(now);
        });
    }
}

/// A place ahead in a lane. Dropped, it is handed on.
#[derive(Debug)]
pub(crate) struct Place {
    gates: Arc<Gates>,
    lane: Hashed,
    turn: Turn,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Contending,
    Holding,
    Releasing,
    /// The release is sent; its answer is awaited, out of courtesy.
    Sent,
    Gone,
}

impl Place {
    /// A place whose task contends.
    pub(super) fn new(gates: &Arc<Gates>, lane: Hashed, turn: Turn) -> Self {
        Self { gates: Arc::clone(gates), lane, turn, stage: Stage::Contending }
    }

    /// Whether this attempt should let other processes go first.
    pub(crate) fn is_courteous(&self) -> bool {
        self.turn.courteous
    }

    /// Whether the next one after it is to let other processes go first.
    pub(crate) fn is_last_turn(&self) -> bool {
        self.turn.last
    }

    /// Its release has found that there is nobody to be let go first.
    pub(crate) fn nobody_waits(&self) {
        self.gates.change(&self.lane, |lane, _| lane.turns.begin_alone());
    }

    /// The lock was granted.
    pub(crate) fn granted(&mut self) {
        self.stage = Stage::Holding;
        if self.turn.courteous {
            // It let others go first, which may have taken longer than all its turns may.
            self.gates.change(&self.lane, |lane, now| lane.turns.begin(now));
        }
        if self.lane.mode != Mode::Exclusive {
            let mode = self.lane.mode;
            self.gates.change(&self.lane, |lane, now| lane.stop_contending(mode, true, now));
        }
    }

    /// A release will be sent soon: `try_lock` waits for that.
    pub(crate) fn begin_release(&mut self) {
        self.stage = Stage::Releasing;
        self.gates.change(&self.lane, |lane, _| lane.releasing += 1);
    }

    /// The release is sent, and a later acquire comes after it: the next may start.
    pub(crate) fn release_sent(&mut self) {
        let stage = self.stage;
        let exclusive = self.lane.mode == Mode::Exclusive;
        self.stage = self.gates.change(&self.lane, |lane, now| {
            if stage == Stage::Releasing {
                lane.release_sent();
            }
            if exclusive && !lane.queue.is_empty() && lane.turns.are_over(now) {
                return Stage::Sent;
            }
            if exclusive {
                lane.stop_contending(Mode::Exclusive, false, now);
            }
            Stage::Gone
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (stage, mode) = (self.stage, self.lane.mode);
        let ahead = match stage {
            Stage::Gone => return,
            Stage::Contending => true,
            Stage::Holding | Stage::Releasing | Stage::Sent => mode == Mode::Exclusive,
        };
        self.gates.change(&self.lane, |lane, now| {
            if stage == Stage::Releasing {
                lane.release_sent();
            }
            if ahead {
                lane.stop_contending(mode, false, now);
            }
        });
    }
}

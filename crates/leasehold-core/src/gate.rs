//! The gate: however many tasks of this process want a key, one of them contends for it remotely.
//!
//! Each key has a lane: a first-come-first-served queue and what is ahead of it. The task at the head contends; the rest
//! wait here, at no cost to the backend. An exclusive holder stays ahead until it releases. Readers and permit holders
//! leave the lane once they are granted, and readers that queue behind a granted one go together.
//!
//! The next task may start as soon as the release ahead of it has been *sent* (if the backend orders releases). That is
//! fast and would starve other processes, so after [`TURNS`] turns in a row or [`TURN_TIME`] the next one starts only
//! when the release has been answered, and asks *courteously*: to be refused if another process waits.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, task};

use crate::{
    clock::{Clock, Moment},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    mode::Mode,
};

/// Turns within the process before others are let in: few enough that a waiter elsewhere waits for fewer than 50, many
/// enough that courtesy costs little.
const TURNS: u32 = 16;
/// And not for longer than this.
const TURN_TIME: Duration = Duration::from_millis(50);
/// Whoever locks again within this time after its own release goes on with its turns. Longer than a wake-up and a round
/// trip take, so that others had their chance in a longer pause.
const SAME_STREAK: Duration = Duration::from_millis(5);
/// So that keys seldom share a mutex.
const SHARDS: usize = 16;
/// Keys per shard whose turns are remembered after their lane is gone.
const REMEMBERED: usize = 16;

/// All lanes of a client.
#[derive(Debug)]
pub(crate) struct Gates {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct Shard {
    lanes: HashMap<LaneKey, Lane>,
    streaks: [Streak; REMEMBERED],
    next_ticket: u64,
    closed: bool,
}

/// The turns of a lane that has gone. A collision forgets one: its key gets a few turns more.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    hash: u64,
    turns: Turns,
    last: Moment,
}

/// Permits are a name space of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LaneKey {
    key: LockKey,
    permit: bool,
}

#[derive(Debug, Default)]
struct Lane {
    ahead: Ahead,
    queue: VecDeque<Ticket>,
    /// Releases that have begun and are not yet sent.
    releasing: usize,
    /// `try_lock`s that wait for `releasing` to be over.
    tries: Vec<oneshot::Sender<()>>,
    turns: Turns,
    /// The task that was admitted last.
    task: Option<task::Id>,
}

/// What the queue waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ahead {
    #[default]
    Nothing,
    /// One task contends, or holds exclusively.
    One,
    /// This many readers contend after one of them was granted; more may join.
    Readers(usize),
}

#[derive(Debug)]
struct Ticket {
    id: u64,
    mode: Mode,
    task: Option<task::Id>,
    /// Carries whether to be courteous.
    admit: oneshot::Sender<bool>,
}

/// Turns in a row, and when the first was.
#[derive(Clone, Copy, Debug, Default)]
struct Turns {
    count: u32,
    since: Moment,
}

impl Turns {
    fn are_over(self, now: Moment) -> bool {
        self.count > 0 && (self.count >= TURNS || now.since(self.since) >= TURN_TIME)
    }

    /// Takes a turn; `true` if it is one to be courteous in, which begins a new row.
    fn take(&mut self, now: Moment) -> bool {
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

impl Gates {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { shards: Default::default(), hasher: RandomState::new(), clock }
    }

    /// Waits for a place at the head of the key's lane.
    ///
    /// # Cancel safety
    /// Safe: a place that was given meanwhile is handed on.
    pub(crate) async fn enter(self: &Arc<Self>, key: &LockKey, mode: Mode) -> Result<Place> {
        let lane = self.lane(key, mode);
        let now = self.clock.now();
        let (id, admitted) = {
            let mut shard = self.shard(&lane);
            if shard.closed {
                return Err(closed());
            }
            let state = shard.open(&lane, now);
            if state.queue.is_empty() && state.admits(mode) {
                let courteous = state.admit(mode, task::try_id(), now);
                drop(shard);
                return Ok(self.place(lane, courteous));
            }
            let (admit, admitted) = oneshot::channel();
            let id = shard.next_ticket;
            shard.next_ticket += 1;
            shard.open(&lane, now).queue.push_back(Ticket { id, mode, task: task::try_id(), admit });
            (id, admitted)
        };
        let mut queued = Queued { gates: self, lane: Some(lane), id, admitted };
        let courteous = (&mut queued.admitted).await.map_err(|_| closed())?;
        match queued.lane.take() {
            Some(lane) => Ok(self.place(lane, courteous)),
            None => Err(closed()),
        }
    }

    /// Whether the task that would queue is the one that everybody in the lane waits for: then it waits for itself.
    pub(crate) fn is_own_successor(&self, key: &LockKey, mode: Mode) -> bool {
        let lane = self.lane(key, mode);
        let shard = self.shard(&lane);
        let ahead = shard.lanes.get(&lane.lane).filter(|state| state.ahead == Ahead::One);
        ahead.and_then(|state| state.task).is_some_and(|task| task::try_id() == Some(task))
    }

    /// A place if nobody is ahead. `None` leaves the caller to make its attempt outside of the lane. Does not wait, but
    /// for releases of this process that have begun and are not yet sent.
    pub(crate) async fn try_enter(self: &Arc<Self>, key: &LockKey, mode: Mode) -> Result<Option<Place>> {
        let lane = self.lane(key, mode);
        loop {
            let now = self.clock.now();
            let sent = {
                let mut shard = self.shard(&lane);
                if shard.closed {
                    return Err(closed());
                }
                let state = shard.open(&lane, now);
                if state.releasing > 0 {
                    let (tell, sent) = oneshot::channel();
                    state.tries.push(tell);
                    sent
                } else if state.queue.is_empty() && state.admits(mode) {
                    // Who only tries is not made to yield: it does not queue up for its next turn.
                    state.admit(mode, task::try_id(), now);
                    drop(shard);
                    return Ok(Some(self.place(lane, false)));
                } else {
                    return Ok(None);
                }
            };
            // Its sender is dropped when the release is on its way: look again.
            drop(sent.await);
        }
    }

    /// Sends all who wait away with [`ErrorKind::Closed`], and all who come later.
    pub(crate) fn close(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.closed = true;
            for lane in shard.lanes.values_mut() {
                lane.queue.clear();
            }
        }
    }

    fn place(self: &Arc<Self>, lane: Hashed, courteous: bool) -> Place {
        Place { gates: Arc::clone(self), lane, courteous, stage: Stage::Contending }
    }

    fn lane(&self, key: &LockKey, mode: Mode) -> Hashed {
        let lane = LaneKey { key: key.clone(), permit: mode.is_permit() };
        Hashed { hash: self.hasher.hash_one(&lane), lane, mode }
    }

    fn shard(&self, lane: &Hashed) -> MutexGuard<'_, Shard> {
        lock(&self.shards[lane.hash as usize % SHARDS])
    }

    /// Changes a lane, with the present in hand; removes it if it has become idle.
    fn change<T>(&self, lane: &Hashed, change: impl FnOnce(&mut Lane, Moment) -> T) -> T {
        let now = self.clock.now();
        let mut shard = self.shard(lane);
        let state = shard.open(lane, now);
        let changed = change(state, now);
        if state.is_idle() {
            let turns = state.turns;
            shard.lanes.remove(&lane.lane);
            *shard.streak(lane) = Streak { hash: lane.hash, turns, last: now };
        }
        changed
    }
}

/// A lane's name with its hash, and the mode that its user wants.
#[derive(Clone, Debug)]
struct Hashed {
    lane: LaneKey,
    hash: u64,
    mode: Mode,
}

impl Shard {
    fn streak(&mut self, lane: &Hashed) -> &mut Streak {
        &mut self.streaks[lane.hash as usize / SHARDS % REMEMBERED]
    }

    fn open(&mut self, lane: &Hashed, now: Moment) -> &mut Lane {
        let streak = *self.streak(lane);
        self.lanes.entry(lane.lane.clone()).or_insert_with(|| {
            let goes_on = streak.hash == lane.hash && now.since(streak.last) < SAME_STREAK;
            Lane { turns: if goes_on { streak.turns } else { Turns::default() }, ..Lane::default() }
        })
    }
}

/// A panic under a shard's mutex would be a bug of this file; its state is consistent between statements.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the client is closed; make a new one")
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.ahead == Ahead::Nothing && self.queue.is_empty() && self.releasing == 0 && self.tries.is_empty()
    }

    fn admits(&self, mode: Mode) -> bool {
        match self.ahead {
            Ahead::Nothing => true,
            Ahead::One => false,
            Ahead::Readers(_) => mode == Mode::Shared,
        }
    }

    /// Lets one go ahead; whether it is to be courteous.
    fn admit(&mut self, mode: Mode, task: Option<task::Id>, now: Moment) -> bool {
        self.task = task;
        self.ahead = match (self.ahead, mode) {
            (Ahead::Readers(count), Mode::Shared) => Ahead::Readers(count + 1),
            _ => Ahead::One,
        };
        // A reader needs no courtesy: the backend lets none overtake a waiting writer.
        mode != Mode::Shared && self.turns.take(now)
    }

    /// Admits those at the front of the queue who may go now.
    fn advance(&mut self, now: Moment) {
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
    fn stop_contending(&mut self, mode: Mode, granted: bool, now: Moment) {
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

    fn release_sent(&mut self) {
        self.releasing = self.releasing.saturating_sub(1);
        if self.releasing == 0 {
            // Dropping the senders tells.
            self.tries.clear();
        }
    }
}

/// A task that waits in a lane's queue. Dropped, it leaves the queue, or hands on the place that it was given.
struct Queued<'a> {
    gates: &'a Gates,
    lane: Option<Hashed>,
    id: u64,
    admitted: oneshot::Receiver<bool>,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        let (id, admitted) = (self.id, &mut self.admitted);
        self.gates.change(&lane, |state, now| {
            // Numbers in a queue grow, and admissions are sent under the same mutex.
            if let Ok(at) = state.queue.binary_search_by_key(&id, |ticket| ticket.id) {
                state.queue.remove(at);
            } else if admitted.try_recv().is_ok() {
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
    courteous: bool,
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
    /// Whether this attempt should let other processes go first.
    pub(crate) fn is_courteous(&self) -> bool {
        self.courteous
    }

    /// The lock was granted.
    pub(crate) fn granted(&mut self) {
        self.stage = Stage::Holding;
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

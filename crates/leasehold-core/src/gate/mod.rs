//! The gate: however many tasks of this process want a key, one of them contends for it remotely.
//!
//! Each key has a lane: a first-come-first-served queue and what is ahead of it. The task at the head contends; the rest
//! wait here, at no cost to the backend. An exclusive holder stays ahead until it releases. Readers and permit holders
//! leave the lane once they are granted, and readers that queue behind a granted one go together.
//!
//! The next task may start as soon as the release ahead of it has been *sent* (if the backend orders releases). That is
//! fast and would starve other processes, so after [`lane::TURNS`] turns in a row or [`lane::TURN_TIME`] the next one starts only
//! when the release has been answered, and asks *courteously*: to be refused if another process waits. Not so if that release
//! has looked, and found that none does.

mod lane;
mod place;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, task};

pub(crate) use self::place::Place;
use self::{
    lane::{Ahead, Lane, Ticket, Turn, Turns},
    place::Queued,
};
use crate::{
    clock::{Clock, Moment},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    mode::Mode,
};

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
    lanes: HashMap<Hashed, Lane, BuildHasherDefault<KnownHash>>,
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

impl Gates {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { shards: Default::default(), hasher: RandomState::new(), clock }
    }

    /// Waits for a place at the head of the key's lane. `waits_for_itself` is called if it still waits after `patience`
    /// for a place that the very task that waits was given.
    ///
    /// # Cancel safety
    /// Safe: a place that was given meanwhile is handed on.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        key: &LockKey,
        mode: Mode,
        patience: Duration,
        waits_for_itself: impl FnOnce(),
    ) -> Result<Place> {
        let lane = self.lane(key, mode);
        let now = self.clock.now();
        let (id, admitted, own) = {
            let mut shard = self.shard(&lane);
            if shard.closed {
                return Err(closed());
            }
            let state = shard.open(&lane, now);
            if state.queue.is_empty() && state.admits(mode) {
                let turn = state.admit(mode, task::try_id(), now);
                drop(shard);
                return Ok(Place::new(self, lane, turn));
            }
            let task = task::try_id();
            let own = state.ahead == Ahead::One && task.is_some() && state.task == task;
            let (admit, admitted) = oneshot::channel();
            let id = shard.next_ticket;
            shard.next_ticket += 1;
            shard.open(&lane, now).queue.push_back(Ticket { id, mode, task, admit });
            (id, admitted, own)
        };
        let mut queued = Queued { gates: self, lane: Some(lane), id, admitted, answer: None };
        if own && tokio::time::timeout(patience, queued.turn()).await.is_err() {
            waits_for_itself();
        }
        let turn = queued.turn().await?;
        match queued.lane.take() {
            Some(lane) => Ok(Place::new(self, lane, turn)),
            None => Err(closed()),
        }
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
                    return Ok(Some(Place::new(self, lane, Turn::default())));
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
            shard.lanes.remove(lane);
            *shard.streak(lane) = Streak { hash: lane.hash, turns, last: now };
        }
        changed
    }
}

/// A lane's name with its hash, computed once, and the mode that its user wants.
#[derive(Clone, Debug)]
struct Hashed {
    lane: LaneKey,
    hash: u64,
    mode: Mode,
}

impl PartialEq for Hashed {
    fn eq(&self, other: &Self) -> bool {
        self.lane == other.lane
    }
}

impl Eq for Hashed {}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The hasher of what is hashed already.
#[derive(Debug, Default)]
struct KnownHash(u64);

impl Hasher for KnownHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used: a `Hashed` writes its `u64`.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Shard {
    fn streak(&mut self, lane: &Hashed) -> &mut Streak {
        &mut self.streaks[lane.hash as usize / SHARDS % REMEMBERED]
    }

    fn open(&mut self, lane: &Hashed, now: Moment) -> &mut Lane {
        let streak = *self.streak(lane);
        self.lanes.entry(lane.clone()).or_insert_with(|| {
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

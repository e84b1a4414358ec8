//! The local queue: however many tasks of this process want a key, one of them contends for it at
//! the backend.
//!
//! Each key has a queue of its own, served first come, first served. The task at the head contends
//! at the backend. The others wait here and cost the backend nothing. An exclusive holder stays at
//! the head until it releases. Readers and permit holders leave the queue once they are granted,
//! and readers behind a granted reader go together.
//!
//! The next task starts as soon as the release ahead of it has been *sent*, if the backend orders
//! releases. That is fast and would starve other processes. So a process has a fairness quota for
//! each key: once [`key_queue::QUOTA`] is used up, the next attempt yields, which means that the
//! backend refuses it if another process waits.

mod key_queue;
mod position;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

pub(crate) use self::position::Place;
use self::{
    key_queue::{Admitted, Ahead, KeyQueue, Ticket},
    position::Queued,
};
use crate::{
    clock::{Clock, Timestamp},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    mode::Mode,
    request::Request,
    signal::Signal,
};

/// So that keys seldom share a mutex.
const SHARDS: usize = 16;
/// A shard with fewer keys than this is not searched for those that are no longer used.
const FEW: usize = 16;

/// All lanes of a client.
#[derive(Debug)]
pub(crate) struct LocalQueues {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct Shard {
    lanes: HashMap<Hashed, KeyQueue, BuildHasherDefault<KnownHash>>,
    /// With this many keys, those that are no longer used are removed.
    purge_at: usize,
    next_ticket: u64,
    closed: bool,
}

/// Permits are a name space of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct QueueKey {
    key: LockKey,
    permit: bool,
}

impl LocalQueues {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            clock,
        }
    }

    /// Waits for a place at the head of the key's lane. `waits_for_itself` is called if it still
    /// waits after a TTL for a place that the very task that waits was given. If it leaves without
    /// a place, its signal says why it waited.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`]; that of one that was ahead if the backend did not answer it for as
    /// long as this one has waited.
    ///
    /// # Cancel safety
    /// Safe: a place that was given meanwhile is handed on.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        request: &Request,
        waits_for_itself: impl FnOnce(),
    ) -> Result<Place> {
        let (mode, who) = (request.mode(), Admitted::of(request));
        let (lane, patience) = (self.lane(request.key(), mode), request.ttl().as_duration());
        let now = self.clock.now();
        let (id, admitted, own) = {
            let mut shard = self.shard(&lane);
            if shard.closed {
                return Err(closed());
            }
            let state = shard.open(&lane, now);
            if state.queue.is_empty() && state.admits(mode) {
                let yields = state.admit(mode, who, now);
                drop(shard);
                return Ok(Place::new(self, lane, yields, request.signal()));
            }
            let own = state.ahead == Ahead::One
                && state
                    .last
                    .as_ref()
                    .is_some_and(|last| last.asker == who.asker);
            let (admit, admitted) = oneshot::channel();
            let id = shard.next_ticket;
            shard.next_ticket += 1;
            let ticket = Ticket {
                id,
                mode,
                who,
                since: now,
                patience,
                admit,
            };
            shard.open(&lane, now).queue.push_back(ticket);
            (id, admitted, own)
        };
        let mut queued = Queued {
            queues: self,
            lane: Some(lane),
            id,
            admitted,
            answer: None,
        };
        if own && tokio::time::timeout(patience, queued.turn()).await.is_err() {
            waits_for_itself();
        }
        let yields = queued.turn().await?;
        match queued.lane.take() {
            Some(lane) => Ok(Place::new(self, lane, yields, request.signal())),
            None => Err(closed()),
        }
    }

    /// Returns a place if nobody is ahead. It counts towards the fairness quota, so that a loop of
    /// tries starves no waiter of another process. With `None` the caller makes its attempt outside
    /// of the queue, and should yield to waiters, because a task of this process may be waiting.
    ///
    /// Waits only for releases of this process that began before and are not yet sent, and only if
    /// one of them is certain to be in the way.
    pub(crate) async fn try_enter(self: &Arc<Self>, request: &Request) -> Result<Option<Place>> {
        let mode = request.mode();
        let lane = self.lane(request.key(), mode);
        let in_the_way = self.look(&lane, |lane| match mode {
            Mode::Exclusive => lane.releases(),
            Mode::Shared if lane.exclusive_releasing => lane.releases(),
            _ => None,
        });
        if let Some(sent) = in_the_way {
            // Its sender is dropped when they are sent.
            drop(sent.await);
        }
        let mut shard = self.shard(&lane);
        if shard.closed {
            return Err(closed());
        }
        let now = self.clock.now();
        let state = shard.open(&lane, now);
        if state.queue.is_empty() && state.admits(mode) {
            let yields = state.admit(mode, Admitted::of(request), now);
            drop(shard);
            return Ok(Some(Place::new(self, lane, yields, request.signal())));
        }
        Ok(None)
    }

    /// Completes when all releases of this key are sent that have begun by now. `None` if there are
    /// none.
    pub(crate) fn releases(&self, key: &LockKey, mode: Mode) -> Option<oneshot::Receiver<()>> {
        self.look(&self.lane(key, mode), KeyQueue::releases)
    }

    /// Who was let go ahead last, and may be ahead now.
    pub(crate) fn last(&self, key: &LockKey, mode: Mode) -> Option<Arc<Signal>> {
        self.look(&self.lane(key, mode), |lane| {
            lane.last.as_ref().map(|last| Arc::clone(&last.signal))
        })
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
        let lane = QueueKey {
            key: key.clone(),
            permit: mode.is_permit(),
        };
        Hashed {
            hash: self.hasher.hash_one(&lane),
            lane,
            mode,
        }
    }

    fn shard(&self, lane: &Hashed) -> MutexGuard<'_, Shard> {
        lock(&self.shards[lane.hash as usize % SHARDS])
    }

    /// Looks at a lane, if there is one.
    fn look<T>(&self, lane: &Hashed, look: impl FnOnce(&mut KeyQueue) -> Option<T>) -> Option<T> {
        self.shard(lane).lanes.get_mut(lane).and_then(look)
    }

    /// Changes a key's queue, with the present in hand.
    fn change<T>(&self, lane: &Hashed, change: impl FnOnce(&mut KeyQueue, Timestamp) -> T) -> T {
        let now = self.clock.now();
        let mut shard = self.shard(lane);
        let state = shard.open(lane, now);
        let changed = change(state, now);
        if state.is_idle() {
            state.rest(now);
        }
        changed
    }
}

/// A lane's name with its hash, computed once, and the mode that its user wants.
#[derive(Clone, Debug)]
struct Hashed {
    lane: QueueKey,
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
    fn open(&mut self, lane: &Hashed, now: Timestamp) -> &mut KeyQueue {
        if self.lanes.len() >= self.purge_at.max(FEW) {
            self.lanes.retain(|_, lane| !lane.is_unused(now));
            self.purge_at = 2 * self.lanes.len();
        }
        let state = self.lanes.entry(lane.clone()).or_default();
        if state.is_unused(now) {
            *state = KeyQueue::default();
        }
        state
    }
}

/// A panic under a shard's mutex would be a bug of this file; its state is consistent between
/// statements.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the client is closed or drains; make a new one",
    )
}

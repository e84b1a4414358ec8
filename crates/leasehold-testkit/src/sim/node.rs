//! [`SimNode`]: a simulated server.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    Clock, Timestamp,
    quorum::{Durability, Eligibility, NodeState, VoteRequirements, Watched},
};
use tokio::sync::{Notify, futures::OwnedNotified};

use super::{
    clock::SimClock,
    memory::{Memory, WatchedRun},
    node_bug::NodeBug,
};

/// The data that a node loses in a crash.
///
/// ```
/// use leasehold_testkit::sim::{DataLoss, SimClock, SimNode};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let node = SimNode::new(SimClock::new());
/// node.crash(DataLoss::Total);
/// assert!(!node.is_up());
/// node.start();
/// assert!(node.is_up());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataLoss {
    /// No data.
    None,
    /// The changes since the last [`save`](SimNode::save), or all data if there was none. The node
    /// restarts with the old snapshot, including its marker.
    SinceSave,
    /// All data.
    Total,
}

/// A simulated server with a clock of its own. It answers requests, one at a time, while it is up
/// and not paused. See [`sim`](crate::sim) for an example.
#[derive(Debug)]
pub struct SimNode {
    /// The number of this node within the process.
    id: u64,
    clock: Arc<SimClock>,
    state: Mutex<State>,
    resumed: Notify,
    /// Notified when a lock may have become free. This is not a `watch`, which notifies in a random
    /// order.
    freed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    memory: Memory,
    saved: Option<Memory>,
    up: bool,
    paused: bool,
    run: u64,
    started: Timestamp,
    durable: bool,
    bug: Option<NodeBug>,
}

impl SimNode {
    /// Creates a node that has been started for the first time.
    #[must_use]
    pub fn new(clock: Arc<SimClock>) -> Arc<Self> {
        let state = State {
            memory: Memory::default(),
            saved: None,
            up: true,
            paused: false,
            run: 1,
            started: clock.now(),
            durable: false,
            bug: None,
        };
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            id,
            clock,
            state: Mutex::new(state),
            resumed: Notify::new(),
            freed: Arc::default(),
        })
    }

    /// Sets whether the node reports itself as durable. [`crash`](Self::crash) decides which data a
    /// crash really loses.
    pub fn set_durable(&self, durable: bool) {
        self.state().durable = durable;
    }

    /// Gives the node a bug, or removes it.
    pub fn set_bug(&self, bug: Option<NodeBug>) {
        self.state().bug = bug;
    }

    /// Takes the snapshot that [`DataLoss::SinceSave`] restores.
    pub fn save(&self) {
        let mut state = self.state();
        state.saved = Some(state.memory.clone());
    }

    /// Stops the node and loses data. Requests on their way to it are lost, and its connections
    /// break.
    pub fn crash(&self, loss: DataLoss) {
        let mut state = self.state();
        match loss {
            DataLoss::None => {}
            DataLoss::SinceSave => state.memory = state.saved.clone().unwrap_or_default(),
            DataLoss::Total => (state.memory, state.saved) = (Memory::default(), None),
        }
        state.up = false;
    }

    /// Starts the node again after a crash.
    pub fn start(&self) {
        let mut state = self.state();
        if !state.up {
            state.run += 1;
            state.up = true;
            state.started = self.clock.now();
        }
        drop(state);
        self.freed();
    }

    /// Pauses the node, as `SIGSTOP` does, or resumes it. Its clock continues meanwhile.
    pub fn pause(&self, paused: bool) {
        self.state().paused = paused;
        self.resumed.notify_waiters();
    }

    /// Returns whether the node is up. A paused node is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state().up
    }

    /// Returns whether the node holds any lock of any client.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.state().memory.holds(self.clock.now())
    }

    /// Returns whether the node votes on tokens, which it does while it is up and has not lost
    /// data.
    #[must_use]
    pub fn votes(&self) -> bool {
        let run = self.run();
        let vote = run.and_then(|run| self.answer(run, |handler| handler.read_state().votes()));
        vote.unwrap_or(false)
    }

    /// Returns the clock of the node.
    #[must_use]
    pub fn clock(&self) -> &Arc<SimClock> {
        &self.clock
    }

    /// Returns the number of the current run, or `None` while the node is down.
    pub(super) fn run(&self) -> Option<u64> {
        let state = self.state();
        state.up.then_some(state.run)
    }

    /// Waits until the node is not paused.
    pub(super) async fn awake(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !self.state().paused {
                return;
            }
            resumed.await;
        }
    }

    /// Answers a request of a connection to this run, or returns `None` if the run has ended.
    pub(super) fn answer<T>(
        &self,
        run: u64,
        answer: impl FnOnce(&mut NodeHandler<'_>) -> T,
    ) -> Option<T> {
        let mut state = self.state();
        if !state.up || state.run != run {
            return None;
        }
        let State {
            memory,
            run,
            started,
            durable,
            bug,
            ..
        } = &mut *state;
        let now = self.clock.now();
        let mut handler = NodeHandler {
            memory,
            node: self.id,
            run: *run,
            up_for: now.since(*started),
            durable: *durable,
            bug: *bug,
            now,
        };
        let answered = answer(&mut handler);
        Some(answered)
    }

    pub(super) fn bug(&self) -> Option<NodeBug> {
        self.state().bug
    }

    pub(super) fn freed(&self) {
        self.freed.notify_waiters();
    }

    /// Returns a future that completes at the next call of [`freed`](Self::freed).
    pub(super) fn next_freed(&self) -> OwnedNotified {
        Arc::clone(&self.freed).notified_owned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The view of a node while it answers one request.
pub(super) struct NodeHandler<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) now: Timestamp,
    pub(super) durable: bool,
    pub(super) bug: Option<NodeBug>,
    node: u64,
    run: u64,
    up_for: Duration,
}

impl NodeHandler<'_> {
    pub(super) fn run_name(&self) -> String {
        format!("{}.{}", self.node, self.run)
    }

    pub(super) fn eligibility(&self) -> Eligibility {
        let mark = self.memory.mark.as_ref();
        let attested = mark.is_some_and(|mark| mark.incarnation == self.run_name());
        // These bugs ignore a missing marker, or assume that durable nodes never restore a backup.
        let wrong = match self.bug {
            Some(NodeBug::VotesAfterDataLoss) => true,
            Some(NodeBug::VotesWithOlderData) => {
                self.durable && mark.is_some_and(|mark| mark.durable)
            }
            _ => false,
        };
        let memory = if attested || wrong {
            Durability::Confirmed
        } else {
            Durability::Unknown
        };
        let watched = self
            .memory
            .watched
            .as_ref()
            .filter(|watched| watched.run == self.run_name());
        let watched_for = match self.bug {
            Some(NodeBug::GraceByOwnClock) => self.up_for,
            _ => watched.map_or(Duration::ZERO, |watched| watched.duration),
        };
        Eligibility {
            durability: memory,
            watched_for,
        }
    }

    pub(super) fn meets(&self, requirements: &VoteRequirements) -> bool {
        let VoteRequirements {
            epoch_required: attested,
            largest_ttl,
            ..
        } = *requirements;
        let vote_rights = self.eligibility().vote_rights(largest_ttl);
        if attested {
            vote_rights.token
        } else {
            vote_rights.lock
        }
    }

    pub(super) fn version(&self) -> String {
        let watched = self
            .memory
            .watched
            .as_ref()
            .map(|watched| (&watched.run, watched.name));
        format!("{:?} {watched:?}", self.memory.mark)
    }

    /// Adds the time for which a client has observed this run.
    pub(super) fn watch(&mut self, watched: Option<&Watched>, name: u64) {
        let run = self.run_name();
        if self
            .memory
            .mark
            .as_ref()
            .is_some_and(|mark| mark.incarnation == run)
        {
            return;
        }
        if self
            .memory
            .watched
            .as_ref()
            .is_none_or(|known| known.run != run)
        {
            self.memory.watched = Some(WatchedRun {
                run,
                name,
                duration: Duration::ZERO,
            });
            return;
        }
        let (version, twice) = (self.version(), self.bug == Some(NodeBug::WatchedTwice));
        if let (Some(known), Some(watched)) = (&mut self.memory.watched, watched)
            && watched.version == version
            && (twice || watched.before == known.duration)
        {
            known.duration += watched.duration;
        }
    }

    pub(super) fn read_state(&self) -> NodeState {
        let mark = self.memory.mark.as_ref();
        NodeState {
            incarnation: self.run_name(),
            version: self.version(),
            eligibility: self.eligibility(),
            durable: self.durable && mark.is_some_and(|mark| mark.durable),
            recorded: mark.map(|mark| mark.incarnation.clone()),
            largest_ttl: mark.map(|mark| mark.largest_ttl),
            highest_token: self.memory.highest_token(),
            wall_clock: None,
        }
    }
}

//! One state of the world: the store, the replicas, and the truth.

use crate::once::{format, model::truth::Truth, state::State, unix_millis::UnixMillis};

/// The lock, as the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lock {
    Free,
    /// Held by the one replica that writes or works.
    Held,
    /// Held by a replica that has crashed, until it expires.
    Orphaned,
}

/// The step that follows a confirmed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Then {
    /// The work begins.
    Begin,
    /// The lock is released.
    Release,
}

/// A replica. Records are kept as their text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Replica {
    #[default]
    Idle,
    /// It holds the lock, and its write is under way or has arrived.
    Writing {
        text: String,
        /// The replica's time when it decided what to write.
        decided: UnixMillis,
        arrived: bool,
        /// The work whose end is written. Its success is known.
        ended: Option<bool>,
        then: Then,
    },
    /// It holds the lock, and the work is under way.
    Working { text: String },
    /// It lost the lock while it was paused, and its write may still arrive.
    Overdue { text: String },
}

impl Replica {
    pub(super) fn holds(&self) -> bool {
        matches!(self, Self::Writing { .. } | Self::Working { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// The number of steps of time that have passed.
    pub(super) time: u8,
    pub(super) record: Option<String>,
    pub(super) lock: Lock,
    pub(super) replicas: Vec<Replica>,
    pub(super) crashes: u8,
    pub(super) answers: u8,
    pub(super) pauses: u8,
    pub(super) failures: u8,
    pub(super) losses: u8,
    pub(super) truth: Truth,
}

impl World {
    pub(super) fn known(&self) -> Option<State> {
        self.record.as_deref().map(read)
    }

    /// Returns the same state for all orders of replicas whose clocks agree.
    pub(super) fn representative(&self) -> Self {
        let mut same = self.clone();
        same.replicas.sort();
        same
    }
}

pub(super) fn read(text: &str) -> State {
    format::parse(text.as_bytes()).unwrap()
}

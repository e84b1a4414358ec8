use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a worker starts: its only argument, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Its name in events and as a label.
    pub proc: String,
    /// Where its locks live.
    pub url: String,
    /// The TTL of its locks.
    pub ttl_ms: u64,
    /// Its event log.
    pub log: PathBuf,
    /// The resource that the locks protect.
    pub register: PathBuf,
}

/// How long an acquisition may queue.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Patience {
    /// One attempt.
    Try,
    /// At most so many milliseconds.
    Within(u64),
    /// As long as it takes.
    Forever,
}

/// What a worker is told. A guard stays in the *slot* that it was locked into.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Lock `key` into `slot`.
    Lock {
        /// Names the guard from now on.
        slot: u32,
        /// What to lock.
        key: String,
        /// How long to queue.
        patience: Patience,
    },
    /// Lock `key` into `slot` as a reader.
    Read {
        /// Names the guard from now on.
        slot: u32,
        /// What to lock.
        key: String,
        /// How long to queue.
        patience: Patience,
    },
    /// Release the guard in `slot`.
    Release {
        /// The guard.
        slot: u32,
    },
    /// Whether the guard in `slot` is held, and for how long.
    Check {
        /// The guard.
        slot: u32,
    },
    /// Look at the guard in `slot` without a pause, on a thread that no runtime delays, until it is
    /// not held.
    Watch {
        /// The guard.
        slot: u32,
    },
    /// Write `value` to the register with the token of the guard in `slot`, without asking the
    /// guard first.
    Write {
        /// The guard.
        slot: u32,
        /// What to write.
        value: u64,
        /// Whether the register looks at the token.
        fenced: bool,
    },
    /// Lock, read, write and release in many tasks until `Calm`.
    Storm(Storm),
    /// End the storm, and tell what it did.
    Calm,
    /// How often the lock was granted in the storm so far.
    Count,
}

/// Many tasks that lock, change the register and release, again and again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Storm {
    /// How many tasks. Some of them may be readers.
    pub tasks: u32,
    /// How many of the tasks lock to read, and write nothing.
    pub readers: u32,
    /// One of so many holds lasts until the lock is lost, or for one and a half TTLs. 0: none.
    pub long_in: u32,
    /// One of so many acquisitions is dropped before it is granted. 0: none.
    pub drop_in: u32,
    /// What they all lock.
    pub key: String,
    /// How long each queues before it starts again.
    pub within_ms: u64,
    /// How long each holds.
    pub hold_us: u64,
    /// Whether they read and write the register.
    pub write: bool,
}

/// What a worker answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// It is connected.
    Ready,
    /// The lock is held.
    Granted {
        /// Its token.
        token: Option<u64>,
        /// When it must be believed over, on `CLOCK_BOOTTIME`.
        deadline_ns: u64,
    },
    /// Another holds the lock.
    Refused,
    /// A typed error.
    Failed {
        /// The kind, as `Debug` writes it.
        kind: String,
        /// The rest.
        message: String,
    },
    /// The truth about a release, as `Debug` writes it.
    Released(String),
    /// What the guard says of itself.
    Checked {
        /// `is_held()`.
        held: bool,
        /// `remaining()`.
        remaining_ms: u64,
    },
    /// What was seen until the guard said that it is not held.
    Watched {
        /// How often it said that it is held.
        held: u64,
        /// How often of these its deadline had passed before it was asked.
        too_late: u64,
    },
    /// What the register said.
    Wrote {
        /// Whether it took the write.
        accepted: bool,
    },
    /// The storm has begun.
    Storming,
    /// What the storm did.
    Storm {
        /// Grants.
        granted: u64,
        /// Acquisitions that timed out.
        timed_out: u64,
        /// Other errors, by kind.
        errors: Vec<(String, u64)>,
    },
}

/// A command or an answer under the number that brings them together.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Numbered<T> {
    pub(super) id: u64,
    pub(super) body: T,
}

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::replica::Replica;

/// The setup of a worker: its only argument, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// The name in events and label.
    pub proc: String,
    /// The URL of the backend.
    pub url: String,
    /// The TTL of its locks.
    pub ttl_ms: u64,
    /// The path of its event log.
    pub log: PathBuf,
    /// The path of the resource that the locks protect.
    pub register: PathBuf,
}

/// The maximum wait of an acquisition.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Patience {
    /// One attempt.
    Try,
    /// At most this many milliseconds.
    Within(u64),
    /// No limit.
    Forever,
}

/// A command to a worker. A guard stays in the *slot* that it was locked into.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Lock `key` into `slot`.
    Lock {
        /// The slot of the guard.
        slot: u32,
        /// The name of the lock.
        key: String,
        /// The maximum wait.
        patience: Patience,
    },
    /// Lock `key` into `slot` as a reader.
    Read {
        /// The slot of the guard.
        slot: u32,
        /// The name of the lock.
        key: String,
        /// The maximum wait.
        patience: Patience,
    },
    /// Take the only permit of `key` into `slot`.
    Permit {
        /// The slot of the permit.
        slot: u32,
        /// The name of the semaphore.
        key: String,
        /// The maximum wait.
        patience: Patience,
    },
    /// Campaign for the election `key` with a value, and keep the term in `slot`.
    Campaign {
        /// The slot of the term.
        slot: u32,
        /// The name of the election.
        key: String,
        /// The value of the candidate.
        value: String,
    },
    /// Proclaim a value in the term in `slot`.
    Proclaim {
        /// The slot of the term.
        slot: u32,
        /// The value.
        value: String,
    },
    /// Lock these keys together, until the process ends. The answer has the token of the last key
    /// and the earliest deadline.
    LockAll {
        /// The names of the locks.
        keys: Vec<String>,
    },
    /// Report how many keys of `LockAll` are held.
    CheckAll,
    /// Release the guard in `slot`.
    Release {
        /// The slot of the guard.
        slot: u32,
    },
    /// Report whether the guard in `slot` is held, and for how long.
    Check {
        /// The slot of the guard.
        slot: u32,
    },
    /// Check the guard in `slot` continuously, on a thread that no runtime delays, until it is not
    /// held.
    Watch {
        /// The slot of the guard.
        slot: u32,
    },
    /// Write `value` to the register with the token of the guard in `slot`, without checking the
    /// guard first.
    Write {
        /// The slot of the guard.
        slot: u32,
        /// The value to write.
        value: u64,
        /// Whether the register checks the token.
        fenced: bool,
    },
    /// Lock, read, write and release in many tasks until `Calm`.
    Storm(Storm),
    /// End the storm and report its results.
    Calm,
    /// Report the number of grants in the storm so far.
    Count,
    /// Run work once per occurrence. The only answer is the error that ends it.
    Serve(Replica),
}

/// Many tasks that repeatedly lock, change the register and release.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Storm {
    /// The number of tasks, readers included.
    pub tasks: u32,
    /// The number of tasks that lock as readers and write nothing.
    pub readers: u32,
    /// One in this many grants is held until the lock is lost, or for one and a half TTLs. 0 means
    /// none.
    pub long_in: u32,
    /// One in this many acquisitions is dropped before it is granted. 0 means none.
    pub drop_in: u32,
    /// The name of the lock.
    pub key: String,
    /// The timeout of each acquisition.
    pub within_ms: u64,
    /// The time for which a lock is held.
    pub hold_us: u64,
    /// Whether the tasks read and write the register.
    pub write: bool,
    /// Whether the tasks campaign for the election `key`, with the name of the process as their
    /// value, instead of locking.
    pub election: bool,
}

/// An answer of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// The worker is connected.
    Ready,
    /// The lock is held.
    Granted {
        /// The fencing token.
        token: Option<u64>,
        /// The deadline, on `CLOCK_BOOTTIME`.
        deadline_ns: u64,
    },
    /// Another holds the lock.
    Refused,
    /// An error of the library.
    Failed {
        /// The kind, as `Debug` prints it.
        kind: String,
        /// The message.
        message: String,
    },
    /// The outcome of a release, as `Debug` prints it.
    Released(String),
    /// The state of a guard.
    Checked {
        /// `is_held()`.
        held: bool,
        /// `remaining()`.
        remaining_ms: u64,
    },
    /// The observations of [`Command::Watch`].
    Watched {
        /// The number of checks that reported the lock as held.
        held: u64,
        /// The number of these whose deadline had passed before the check.
        too_late: u64,
    },
    /// The number of keys of `LockAll` that are held.
    HeldKeys(u64),
    /// The value is proclaimed.
    Proclaimed,
    /// The result of a write.
    Wrote {
        /// Whether the register accepted the write.
        accepted: bool,
    },
    /// The storm has begun.
    Storming,
    /// The results of the storm.
    Storm {
        /// The number of grants.
        granted: u64,
        /// The number of acquisitions that timed out.
        timed_out: u64,
        /// Other errors, by kind.
        errors: Vec<(String, u64)>,
    },
}

/// A command or an answer, with the number that relates them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Numbered<T> {
    pub(super) id: u64,
    pub(super) body: T,
}

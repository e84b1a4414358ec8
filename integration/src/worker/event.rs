use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use leasehold_core::{Clock, SystemClock};
use serde::{Deserialize, Serialize};

use crate::{HarnessError, Result};

/// What a step is a step of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// An exclusive acquisition.
    Acquire,
    /// A release.
    Release,
    /// A look at the guard: `ok` if it is held, `fail` if it is lost.
    Check,
    /// A read and write of the register.
    Write,
    /// The process is killed: `invoke` before, `ok` when it is dead, both written by the test that does it.
    Kill,
}

/// Where in its operation a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is about to start.
    Invoke,
    /// It has succeeded.
    Ok,
    /// It has certainly not happened, or no longer holds.
    Fail,
    /// Its outcome is not known.
    Info,
}

/// One step of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, on `CLOCK_BOOTTIME`, which all processes of a host share.
    pub t_ns: u64,
    /// Which process.
    pub proc: String,
    /// Which acquisition of it, with all that follows from it.
    pub attempt: u64,
    /// Which lock.
    pub key: String,
    /// What.
    pub op: Op,
    /// How far.
    pub phase: Phase,
    /// The fencing token, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Until when the process believed in the lock at this step, on the same clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
}

/// `CLOCK_BOOTTIME` in nanoseconds: the clock of the events, the deadlines and the tests.
#[must_use]
pub fn now_ns() -> u64 {
    SystemClock.now().as_nanos()
}

/// A process's events, a line each. A line is one `write` that has returned before the process goes on, so SIGKILL loses
/// none.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    proc: String,
    attempts: AtomicU64,
}

impl EventLog {
    /// Opens or goes on with the log at `path`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, proc: &str) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|error| HarnessError::caused_by("cannot open the event log", error))?;
        // A process that was killed and started again goes on with other numbers.
        Ok(Self { file, proc: proc.to_owned(), attempts: AtomicU64::new(now_ns()) })
    }

    /// A number for an acquisition, another one each time.
    pub fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes a step down, with the present as its time.
    pub fn write(&self, attempt: u64, key: &str, (op, phase): (Op, Phase), token: Option<u64>, deadline: Option<u64>) {
        let (proc, key) = (self.proc.clone(), key.to_owned());
        let event = Event { t_ns: now_ns(), proc, attempt, key, op, phase, token, deadline };
        let mut line = serde_json::to_vec(&event).expect("an event is plain data");
        line.push(b'\n');
        (&self.file).write_all(&line).expect("the event log can be written");
    }

    /// Reads the logs of several processes, in the order of time.
    ///
    /// # Errors
    /// A file cannot be read, or holds something else.
    pub fn merge(paths: &[PathBuf]) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for path in paths {
            let text = std::fs::read_to_string(path)
                .map_err(|error| HarnessError::caused_by(format!("cannot read {}", path.display()), error))?;
            for line in text.lines() {
                let event = serde_json::from_str::<Event>(line)
                    .map_err(|error| HarnessError::caused_by(format!("not an event: {line}"), error))?;
                events.push(event);
            }
        }
        events.sort_by_key(|event| event.t_ns);
        Ok(events)
    }
}

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use leasehold_core::{Clock, SystemClock};
pub(super) use leasehold_testkit::history::{Event, Op, Phase};

use crate::{HarnessError, Result};

/// Returns `CLOCK_BOOTTIME` in nanoseconds: the clock of events, deadlines and tests.
#[must_use]
pub fn now_ns() -> u64 {
    SystemClock.now().as_nanos()
}

/// The event log of a process, with one line per event. A line is one `write` that returns before
/// the process continues, so SIGKILL loses no event.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    proc: String,
    attempts: AtomicU64,
}

impl EventLog {
    /// Opens the log at `path`, appending to an existing one.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, proc: &str) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file =
            file.map_err(|error| HarnessError::caused_by("cannot open the event log", error))?;
        // A process that was killed and started again continues with other numbers.
        Ok(Self {
            file,
            proc: proc.to_owned(),
            attempts: AtomicU64::new(now_ns()),
        })
    }

    /// Returns a new number for an acquisition.
    pub fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes an event of an exclusive acquisition, with the current time.
    pub fn write(
        &self,
        attempt: u64,
        key: &str,
        step: (Op, Phase),
        token: Option<u64>,
        deadline: Option<u64>,
    ) {
        self.write_as(false, attempt, key, step, token, deadline);
    }

    /// Writes an event of an acquisition by a reader or a writer, with the current time.
    pub fn write_as(
        &self,
        shared: bool,
        attempt: u64,
        key: &str,
        (op, phase): (Op, Phase),
        token: Option<u64>,
        deadline: Option<u64>,
    ) {
        let (proc, key) = (self.proc.clone(), key.to_owned());
        let event = Event {
            t_ns: now_ns(),
            proc,
            attempt,
            key,
            op,
            phase,
            shared,
            token,
            deadline,
        };
        let mut line = serde_json::to_vec(&event).expect("an event can always be encoded");
        line.push(b'\n');
        (&self.file)
            .write_all(&line)
            .expect("cannot write the event log");
    }

    /// Reads the logs of several processes, ordered by time.
    ///
    /// # Errors
    /// A file cannot be read, or is not a log.
    pub fn merge(paths: &[PathBuf]) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for path in paths {
            let text = std::fs::read_to_string(path).map_err(|error| {
                HarnessError::caused_by(format!("cannot read {}", path.display()), error)
            })?;
            for line in text.lines() {
                let event = serde_json::from_str::<Event>(line).map_err(|error| {
                    HarnessError::caused_by(format!("not an event: {line}"), error)
                })?;
                events.push(event);
            }
        }
        events.sort_by_key(|event| event.t_ns);
        Ok(events)
    }
}

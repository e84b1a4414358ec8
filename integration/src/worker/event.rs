use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use leasehold_core::{Clock, SystemClock};
pub(super) use leasehold_testkit::history::{Event, Op, Phase};

use crate::{HarnessError, Result};

/// `CLOCK_BOOTTIME` in nanoseconds: the clock of the events, the deadlines and the tests.
#[must_use]
pub fn now_ns() -> u64 {
    SystemClock.now().as_nanos()
}

/// A process's events, a line each. A line is one `write` that has returned before the process goes
/// on, so SIGKILL loses none.
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
        let file =
            file.map_err(|error| HarnessError::caused_by("cannot open the event log", error))?;
        // A process that was killed and started again goes on with other numbers.
        Ok(Self {
            file,
            proc: proc.to_owned(),
            attempts: AtomicU64::new(now_ns()),
        })
    }

    /// A number for an acquisition, another one each time.
    pub fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes a step of an exclusive acquisition, with the present as its time.
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

    /// Writes a step of an acquisition that is a reader's or a writer's, with the present as its
    /// time.
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
        let mut line = serde_json::to_vec(&event).expect("an event is plain data");
        line.push(b'\n');
        (&self.file)
            .write_all(&line)
            .expect("the event log can be written");
    }

    /// Reads the logs of several processes, in the order of time.
    ///
    /// # Errors
    /// A file cannot be read, or holds something else.
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

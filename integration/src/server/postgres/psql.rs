use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::programs::program;
use crate::child::OwnedChild;
use crate::{HarnessError, Result};

/// Prints bare rows, ignores the user's configuration, and stops at the first error.
pub(super) const PSQL: [&str; 6] = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"];

/// A line that no row starts with.
const END: &str = "-- end of the answer";

/// A `psql` that stays connected, as a session of another program. An error is printed to the
/// test's standard error and ends it. Dropping it kills it; its backend notices once it is idle.
#[derive(Debug)]
#[must_use = "dropping it ends the session"]
pub struct Psql {
    // Kept alive as long as this.
    _child: OwnedChild,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Psql {
    /// Connects to any URL, such as a pooler's.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn connect(url: &str) -> Result<Self> {
        Self::start(program("psql")?, |command| {
            command.args(PSQL).arg(url).env("PGCONNECT_TIMEOUT", "10");
        })
    }

    pub(super) fn start(program: PathBuf, configure: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut child = OwnedChild::spawn(program, |command| {
            configure(command);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        })?;
        let pipes = child.child_mut();
        let (Some(input), Some(output)) = (pipes.stdin.take(), pipes.stdout.take()) else {
            return Err(HarnessError::new("psql has no pipes"));
        };
        let (heard, lines) = mpsc::channel();
        // The thread ends when psql closes its output, at the latest when it is killed.
        thread::spawn(move || {
            for line in BufReader::new(output)
                .lines()
                .map_while(std::result::Result::ok)
            {
                if heard.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            _child: child,
            input,
            lines,
        })
    }

    /// Sends one or more statements without waiting for their end.
    ///
    /// # Errors
    /// The process has ended.
    pub fn send(&mut self, sql: &str) -> Result<()> {
        writeln!(self.input, "{sql};\n\\echo {END}")
            .and_then(|()| self.input.flush())
            .map_err(|error| HarnessError::caused_by(format!("cannot send {sql:?} to psql"), error))
    }

    /// Returns the rows of the first statement sent, line by line.
    ///
    /// # Errors
    /// There is no answer within `patience`, or the program has ended.
    pub fn answer(&mut self, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        let mut rows = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line == END => return Ok(rows.join("\n")),
                Ok(line) => rows.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(HarnessError::new(format!(
                        "psql has not answered within {patience:?}"
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(HarnessError::new("psql has ended"));
                }
            }
        }
    }

    /// Sends statements and waits for the answer.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`answer`](Self::answer).
    pub fn ask(&mut self, sql: &str, patience: Duration) -> Result<String> {
        self.send(sql)?;
        self.answer(patience)
    }
}

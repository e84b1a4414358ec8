//! [`Progress`]: one line that shows the current measurement.

use std::{
    cell::RefCell,
    fmt::Display,
    io::{IsTerminal, Write, stderr},
    time::Instant,
};

/// One line on the terminal that shows the current measurement. Without a terminal, each
/// measurement has its own line.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    terminal: bool,
    skipped: RefCell<Vec<String>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            terminal: stderr().is_terminal(),
            skipped: RefCell::default(),
        }
    }

    pub(super) fn step(&self, what: impl Display) {
        let seconds = self.started.elapsed().as_secs();
        let mut out = stderr().lock();
        // An error means that the output is closed.
        drop(if self.terminal {
            write!(out, "\r\x1b[K{seconds:>4} s  {what}")
        } else {
            writeln!(out, "{seconds:>4} s  {what}")
        });
        drop(out.flush());
    }

    /// Records a measurement that does not exist for a backend, to be printed at the end.
    pub(super) fn skip(&self, what: impl Display) {
        self.skipped.borrow_mut().push(what.to_string());
    }

    pub(super) fn skipped(&self) -> Vec<String> {
        self.skipped.borrow().clone()
    }

    pub(super) fn finish(&self) {
        if self.terminal {
            drop(write!(stderr(), "\r\x1b[K"));
        }
    }
}

//! [`Child`] on Unix.

use std::{ffi::OsString, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use leasehold::AllInfo;
use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, kill_process, wait},
};
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    time::Instant,
};

use super::command::{Environment, cannot_wait, command};
use crate::{
    exit::Failure,
    os_string::program_of,
    signals::{self, Signal},
    stderr,
};

/// The bounds of the time between two checks of the work. The end of a process starts a check at
/// once, but a process that becomes a daemon does not.
const POLL_INTERVALS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// How long the command waits for processes that the program left behind before it reports them.
const REPORT_AFTER: Duration = Duration::from_secs(1);

/// A running program and the *work*: the program and everything that it started, except daemons.
///
/// On Linux every descendant whose parent ends becomes a child of this command. Such a child is a
/// daemon if it is in another session than this command and the program, that is, if it has called
/// `setsid(2)`. The work is over when no other child is left.
///
/// Elsewhere the work is the program alone.
///
/// The program stays in the process group of this command, as with `flock(1)`. So a signal from a
/// terminal, `timeout(1)` or a job control shell to the group reaches the work too, also STOP and
/// KILL, which this command cannot pass on.
#[derive(Debug)]
pub(crate) struct Child {
    program: Pid,
    /// The status of the program, once it has ended.
    status: Option<ExitStatus>,
    /// The children of this process from before the start of the program. A shell that became this
    /// command by `exec` may have left some. They are not part of the work.
    earlier: Vec<Pid>,
    /// Notifies when a child has ended.
    changed: Stream,
    /// Whether a signal asked the work to end.
    asked_to_end: bool,
    /// The processes that the program left behind and that were asked to end.
    asked: Vec<Pid>,
    killing: bool,
    poll_interval: Duration,
    /// When to report the processes that the program left behind.
    report_at: Option<Instant>,
    reported: bool,
}

impl Child {
    /// Starts the program.
    pub(crate) fn start(
        line: &[OsString],
        leases: &AllInfo,
        environment: &Environment<'_>,
    ) -> Result<Self, Failure> {
        // Registered before the start, so that no end is missed.
        let changed = signal(SignalKind::child()).map_err(|error| cannot_wait(&error))?;
        let earlier = children();
        #[cfg(target_os = "linux")]
        super::descendants::adopt();
        let started = command(line, leases, environment)
            .spawn()
            .map_err(|error| Failure::of_start(program_of(line).0, &error))?;
        let program = i32::try_from(started.id()).ok().and_then(Pid::from_raw);
        Ok(Self {
            program: program.ok_or_else(|| cannot_wait(&"it has no process id"))?,
            status: None,
            earlier,
            changed,
            asked_to_end: false,
            asked: Vec::new(),
            killing: false,
            poll_interval: POLL_INTERVALS.0,
            report_at: None,
            reported: false,
        })
    }

    /// Waits until the work is over, and returns the status of the program.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        loop {
            self.reap()?;
            if let Some(status) = self.status {
                if self.is_over()? {
                    return Ok(status);
                }
                if let Some(signal) = self.end_signal(status) {
                    self.ask_rest(signal);
                }
                self.report_rest();
            }
            if self.killing {
                for process in self.living() {
                    // The first attempt has reported an error.
                    kill_process(process, Signal::KILL).ok();
                }
            }
            tokio::select! {
                _ = self.changed.recv() => self.poll_interval = POLL_INTERVALS.0,
                () = tokio::time::sleep(self.poll_interval), if self.status.is_some() || self.killing => {
                    self.poll_interval = (self.poll_interval * 2).min(POLL_INTERVALS.1);
                }
            }
        }
    }

    /// Passes a signal on to the program or, once it has ended, to the rest of the work.
    ///
    /// After TERM, the rest gets TERM as well when the program has ended, but not before: a program
    /// may end its own processes in its own order.
    pub(crate) fn pass_on(&mut self, signal: Signal) {
        let over = self.status.is_some();
        let ends =
            signal == Signal::TERM || (over && (signal == Signal::INT || signal == Signal::QUIT));
        if ends {
            self.asked_to_end = true;
            self.asked.clear();
        }
        if signals::is_from_terminal(signal) || (over && ends) {
            // The whole group has received it, or `ended` is about to send it to the rest.
        } else if over {
            self.send_to_all(signal);
        } else {
            signals::send(self.program, signal);
        }
    }

    /// Asks all the work to end.
    pub(crate) fn terminate(&mut self) {
        self.send_to_all(Signal::TERM);
        // A stopped process cannot end by itself.
        self.send_to_all(Signal::CONT);
    }

    /// Kills all the work, and the processes that it starts meanwhile, until it is over.
    pub(crate) fn kill(&mut self) {
        self.killing = true;
        self.send_to_all(Signal::KILL);
    }

    /// Takes the status of every child that has ended.
    fn reap(&mut self) -> Result<Reaped, Failure> {
        let mut reaped = Reaped {
            count: 0,
            childless: false,
        };
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((child, status))) => {
                    reaped.count += 1;
                    if child == self.program && self.status.is_none() {
                        self.status = Some(ExitStatus::from_raw(status.as_raw()));
                    }
                    self.earlier.retain(|earlier| *earlier != child);
                    self.asked.retain(|asked| *asked != child);
                }
                Ok(None) => return Ok(reaped),
                Err(Errno::INTR) => {}
                Err(Errno::CHILD) if self.status.is_some() => {
                    return Ok(Reaped {
                        childless: true,
                        ..reaped
                    });
                }
                Err(error) => return Err(cannot_wait(&error)),
            }
        }
    }

    /// Returns whether no work is left, once the program has ended.
    fn is_over(&mut self) -> Result<bool, Failure> {
        loop {
            if self.reap()?.childless {
                return Ok(true);
            }
            let Some(work) = self.work() else {
                return Ok(false);
            };
            if !work.is_empty() {
                return Ok(false);
            }
            // A child that ended meanwhile may have left children behind that were not counted.
            let reaped = self.reap()?;
            if reaped.count == 0 {
                return Ok(true);
            }
        }
    }

    /// Returns the processes of the work, or `None` if the platform does not list them.
    #[cfg(target_os = "linux")]
    fn work(&self) -> Option<Vec<Pid>> {
        let snapshot = super::descendants::Snapshot::take()?;
        let sessions = [snapshot.session(), self.program.as_raw_pid()];
        Some(snapshot.trees(|child| {
            child.id == self.program
                || (sessions.contains(&child.session) && !self.earlier.contains(&child.id))
        }))
    }

    #[cfg(not(target_os = "linux"))]
    fn work(&self) -> Option<Vec<Pid>> {
        None
    }

    /// Returns the processes of the work, as far as they are known.
    fn living(&self) -> Vec<Pid> {
        let program = || {
            self.status
                .is_none()
                .then_some(self.program)
                .into_iter()
                .collect()
        };
        self.work().unwrap_or_else(program)
    }

    fn send_to_all(&self, signal: Signal) {
        for process in self.living() {
            signals::send(process, signal);
        }
    }

    /// Returns the signal that asks the rest of the work to end, or `None` if the program ended by
    /// itself.
    fn end_signal(&self, status: ExitStatus) -> Option<Signal> {
        let by = status.signal().and_then(Signal::from_named_raw);
        if self.asked_to_end || by == Some(Signal::INT) || by == Some(Signal::QUIT) {
            // Background jobs of a shell ignore INT and QUIT.
            return Some(Signal::TERM);
        }
        by.filter(|by| *by == Signal::HUP)
    }

    /// Asks the processes that the program left behind to end, each process once.
    fn ask_rest(&mut self, signal: Signal) {
        for process in self.living() {
            if !self.asked.contains(&process) {
                signals::send(process, signal);
                // A stopped process cannot end by itself.
                signals::send(process, Signal::CONT);
                self.asked.push(process);
            }
        }
    }

    /// Reports the processes that the program left behind, once.
    fn report_rest(&mut self) {
        let at = *self
            .report_at
            .get_or_insert_with(|| Instant::now() + REPORT_AFTER);
        if !self.reported && Instant::now() >= at {
            self.reported = true;
            let left = self.living();
            let left: Vec<_> = left
                .iter()
                .map(|process| process.as_raw_pid().to_string())
                .collect();
            stderr::report(&format!(
                "the program has ended, but processes that it started still run and hold the lock: process {}",
                left.join(", ")
            ));
        }
    }
}

/// The result of [`Child::reap`].
#[derive(Debug)]
struct Reaped {
    count: usize,
    childless: bool,
}

/// Returns the children of this process.
#[cfg(target_os = "linux")]
fn children() -> Vec<Pid> {
    while let Ok(Some(_)) | Err(Errno::INTR) = wait(WaitOptions::NOHANG) {}
    // Usually there are no children, and /proc need not be read.
    match wait(WaitOptions::NOHANG) {
        Err(Errno::CHILD) => Vec::new(),
        _ => super::descendants::Snapshot::take()
            .map(|snapshot| snapshot.trees(|_| true))
            .unwrap_or_default(),
    }
}

#[cfg(not(target_os = "linux"))]
fn children() -> Vec<Pid> {
    Vec::new()
}

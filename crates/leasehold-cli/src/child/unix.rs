//! [`Child`] on Unix.

use std::{ffi::OsString, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use leasehold::LeaseInfo;
use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, kill_process, wait},
};
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    time::Instant,
};

use super::{Surroundings, cannot_wait, code_of_failed_start, command};
use crate::{
    exit::{Failure, say},
    name::program_of,
    signals::{self, Signal},
};

/// The bounds of the pauses between two looks at what still runs. The end of a process ends the
/// pause; a process that becomes a daemon does not.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// How long the command waits for what the program left behind before it says so.
const QUIET: Duration = Duration::from_secs(1);

/// A running program and the *work*: the program and everything that it started, except daemons.
///
/// On Linux every descendant whose parent ends becomes a child of this command. Such a child is a
/// daemon if it is in another session than this command and the program, that is, if it has called
/// `setsid(2)`. The work is over when no other child is left.
///
/// Elsewhere the work is the program alone.
///
/// The program stays in the process group of this command, as with `flock(1)`. So what a terminal,
/// `timeout(1)` or a job control shell sends to the group reaches the program and what it started,
/// also STOP and KILL, which this command could not pass on.
#[derive(Debug)]
pub(crate) struct Child {
    program: Pid,
    /// How the program ended.
    status: Option<ExitStatus>,
    /// The children that this process had before the program: a shell that became this command by
    /// `exec` may have left some. They are not the program's.
    earlier: Vec<Pid>,
    /// A child has ended.
    changed: Stream,
    /// Somebody asked for the end.
    asked_to_end: bool,
    /// Those that the program left behind and that were asked to end.
    asked: Vec<Pid>,
    killing: bool,
    pause: Duration,
    /// When to say what is waited for.
    say_at: Option<Instant>,
    said: bool,
}

impl Child {
    /// Starts the program.
    pub(crate) fn start(
        line: &[OsString],
        lease: &LeaseInfo,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, Failure> {
        // First, so that no end is missed.
        let changed = signal(SignalKind::child()).map_err(|error| cannot_wait(&error))?;
        let earlier = children();
        #[cfg(target_os = "linux")]
        super::descendants::adopt();
        let started = command(line, lease, surroundings)
            .spawn()
            .map_err(|error| code_of_failed_start(program_of(line).0, &error))?;
        let program = i32::try_from(started.id()).ok().and_then(Pid::from_raw);
        Ok(Self {
            program: program.ok_or_else(|| cannot_wait(&"it has no process id"))?,
            status: None,
            earlier,
            changed,
            asked_to_end: false,
            asked: Vec::new(),
            killing: false,
            pause: PAUSES.0,
            say_at: None,
            said: false,
        })
    }

    /// Waits until the work is over, and returns how the program ended.
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
                if let Some(signal) = self.farewell(status) {
                    self.ask_rest(signal);
                }
                self.say_what_is_left();
            }
            if self.killing {
                for process in self.living() {
                    // An error was reported by the first attempt.
                    kill_process(process, Signal::KILL).ok();
                }
            }
            tokio::select! {
                _ = self.changed.recv() => self.pause = PAUSES.0,
                () = tokio::time::sleep(self.pause), if self.status.is_some() || self.killing => {
                    self.pause = (self.pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Passes a signal on to the program or, once it has ended, to the rest of the work.
    ///
    /// After TERM the rest is asked to end as well, as soon as the program has ended: not before,
    /// so that a program may end what it started in its own order.
    pub(crate) fn pass_on(&mut self, signal: Signal) {
        let over = self.status.is_some();
        let ends =
            signal == Signal::TERM || (over && (signal == Signal::INT || signal == Signal::QUIT));
        if ends {
            self.asked_to_end = true;
            self.asked.clear();
        }
        if signals::is_from_terminal(signal) || (over && ends) {
            // The whole group has it already, or the rest is about to be asked.
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

    /// Kills all the work, and what it starts meanwhile, until it is over.
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
            // A child that ended while we looked may have left others behind that we did not see.
            let reaped = self.reap()?;
            if reaped.count == 0 {
                return Ok(true);
            }
        }
    }

    /// Returns the processes at work; `None` where they cannot be known.
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

    /// Returns the processes at work, as far as they are known.
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

    /// Returns the signal that asks the rest of the work to end; `None` if the program ended by
    /// itself.
    fn farewell(&self, status: ExitStatus) -> Option<Signal> {
        let by = status.signal().and_then(Signal::from_named_raw);
        if self.asked_to_end || by == Some(Signal::INT) || by == Some(Signal::QUIT) {
            // A shell lets its background jobs ignore INT and QUIT.
            return Some(Signal::TERM);
        }
        by.filter(|by| *by == Signal::HUP)
    }

    /// Asks what the program left behind to end, each process once.
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

    fn say_what_is_left(&mut self) {
        let at = *self.say_at.get_or_insert_with(|| Instant::now() + QUIET);
        if !self.said && Instant::now() >= at {
            self.said = true;
            let left = self.living();
            let left: Vec<_> = left
                .iter()
                .map(|process| process.as_raw_pid().to_string())
                .collect();
            say(&format!(
                "the program has ended, but what it started still runs and keeps the lock: process {}",
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
    // Usually there are none, and all of /proc need not be read.
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

//! A child process with signals.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::{HarnessError, Result, spawner};

/// How often the state of a process is looked at while waiting for it to change.
const GLANCE: Duration = Duration::from_millis(2);

/// A stop, a continuation or a death by SIGKILL takes effect within microseconds; more than this is
/// a defect.
const OBEDIENCE: Duration = Duration::from_secs(10);

/// A process that this one started and owns: it is killed and reaped on drop, and killed by the
/// kernel if this process dies first. Signals go to its pid alone, which cannot be another's before
/// it is reaped here.
#[derive(Debug)]
#[must_use = "dropping it kills the process"]
pub struct OwnedChild {
    child: Child,
    /// Set once reaped: from then on the pid may be another's.
    exit: Option<ExitStatus>,
}

impl OwnedChild {
    /// Starts `program` with what `configure` adds to its command: arguments, environment, streams.
    ///
    /// # Errors
    /// `program` is not there, or cannot be started.
    pub fn spawn(program: impl AsRef<OsStr>, configure: impl FnOnce(&mut Command)) -> Result<Self> {
        Self::spawn_as(None, program, configure)
    }

    /// The same as another user, which only root can; as this one for `None`.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_as(
        user: Option<&str>,
        program: impl AsRef<OsStr>,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let program = find_program(program)?;
        // setpriv(1) replaces itself by the program, so the pid is the program's own.
        let mut command = Command::new(find_program("setpriv")?);
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.args(["--pdeathsig", "KILL", "--"]).arg(&program);
        // A Ctrl-C at the terminal is for the test run, whose death then takes its children along.
        command.process_group(0);
        configure(&mut command);
        let child = spawner::spawn(command).map_err(|error| {
            HarnessError::caused_by(format!("cannot start {}", program.display()), error)
        })?;
        Ok(Self { child, exit: None })
    }

    /// Its process id. After its death, the id that it had.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended, paused or not.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// SIGSTOP. Returns when it has taken effect: from then on the process does nothing until
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.wait_until("pause", |state| state == 'T')
    }

    /// SIGCONT. Returns when it has taken effect.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.wait_until("resume", |state| state != 'T')
    }

    /// SIGKILL, and reaps it. Does nothing if it has ended already.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            // Both fail only when it is gone, which is what was asked for.
            drop(self.child.kill());
            self.exit = self.child.wait().ok();
        }
    }

    /// SIGTERM, and waits for its end; a paused process is resumed so that it can.
    ///
    /// # Errors
    /// It has not ended after `patience`. It is left running.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.end_by(Signal::TERM, patience)
    }

    /// The same by another signal that it is known to end by.
    pub(crate) fn end_by(&mut self, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        if let Some(exit) = self.try_wait() {
            return Ok(exit);
        }
        self.signal(signal)?;
        self.signal(Signal::CONT)?;
        self.wait(patience)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It has not ended after `patience`. It is left running.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            if let Some(exit) = self.try_wait() {
                return Ok(exit);
            }
            if Instant::now() >= end {
                return Err(HarnessError::new(format!(
                    "process {} still runs after {patience:?}",
                    self.pid()
                )));
            }
            thread::sleep(GLANCE);
        }
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// The pipes to it, where `configure` asked for some.
    pub(crate) fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = self.pid();
        if let Some(exit) = self.try_wait() {
            return Err(HarnessError::new(format!(
                "process {pid} has ended ({exit}), no signal can reach it"
            )));
        }
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|error| HarnessError::caused_by(format!("cannot signal process {pid}"), error))
    }

    fn wait_until(&mut self, what: &str, reached: impl Fn(char) -> bool) -> Result<()> {
        let (pid, end) = (self.pid(), Instant::now() + OBEDIENCE);
        while Instant::now() < end {
            if process_state(pid).is_some_and(&reached) {
                return Ok(());
            }
            thread::sleep(GLANCE);
        }
        Err(HarnessError::new(format!(
            "process {pid} did not {what} within {OBEDIENCE:?}"
        )))
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where `program` is: a path as it is, a bare name as found in `PATH`.
///
/// # Errors
/// It is not there; the error names `integration/setup.sh`, which installs what the tests need.
pub fn find_program(program: impl AsRef<OsStr>) -> Result<PathBuf> {
    let program = Path::new(program.as_ref());
    let found = if program.components().count() > 1 {
        program.is_file().then(|| program.to_owned())
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .map(|folder| folder.join(program))
            .find(|candidate| candidate.is_file())
    };
    found.ok_or_else(|| {
        let program = program.display();
        HarnessError::new(format!(
            "{program} is not installed: run integration/setup.sh, which installs it on Debian"
        ))
    })
}

/// The state letter of proc(5): `R` running, `S` sleeping, `T` stopped, `Z` dead and not reaped.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any character, so the state follows the last one.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

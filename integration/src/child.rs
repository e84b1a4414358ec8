//! A child process that can be paused, resumed and killed.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::{HarnessError, Result, spawner};

/// The interval at which the state of a process is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The limit for a signal to take effect. It takes microseconds, so more than this is a defect.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A child process owned by this one. It is killed and reaped on drop, and the kernel kills it if
/// this process dies first. Signals are sent to its pid only while it is not reaped, so they cannot
/// reach another process.
#[derive(Debug)]
#[must_use = "dropping it kills the process"]
pub struct OwnedChild {
    child: Child,
    /// Set once the child is reaped. The pid may be reused from then on.
    exit: Option<ExitStatus>,
}

impl OwnedChild {
    /// Starts `program`. `configure` can set arguments, environment and streams of the command.
    ///
    /// # Errors
    /// `program` is not there, or cannot be started.
    pub fn spawn(program: impl AsRef<OsStr>, configure: impl FnOnce(&mut Command)) -> Result<Self> {
        Self::spawn_as(None, program, configure)
    }

    /// Starts `program` as another user, which requires root; `None` means the current user.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_as(
        user: Option<&str>,
        program: impl AsRef<OsStr>,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let program = find_program(program)?;
        // setpriv(1) replaces itself with the program, so the pid is the program's.
        let mut command = Command::new(find_program("setpriv")?);
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.args(["--pdeathsig", "KILL", "--"]).arg(&program);
        // Keeps Ctrl-C at the terminal for the test run. Its death ends the children.
        command.process_group(0);
        configure(&mut command);
        let child = spawner::spawn(command).map_err(|error| {
            HarnessError::caused_by(format!("cannot start {}", program.display()), error)
        })?;
        Ok(Self { child, exit: None })
    }

    /// Returns the process id. It stays the same after the process has ended.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns whether the process has not ended. A paused process is running.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// Sends SIGSTOP and returns when it has taken effect. The process does nothing until
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// The process has ended.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.wait_until("pause", |state| state == 'T')
    }

    /// Sends SIGCONT and returns when it has taken effect.
    ///
    /// # Errors
    /// The process has ended.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.wait_until("resume", |state| state != 'T')
    }

    /// Sends SIGKILL and reaps the process. Does nothing if it has already ended.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            // Both calls fail only if the process has already ended.
            drop(self.child.kill());
            self.exit = self.child.wait().ok();
        }
    }

    /// Sends SIGTERM and waits for the end of the process. A paused process is resumed first.
    ///
    /// # Errors
    /// The process has not ended within `patience`. It is left running.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.end_by(Signal::TERM, patience)
    }

    /// Sends another signal that ends the program, and waits for its end.
    pub(crate) fn end_by(&mut self, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        if let Some(exit) = self.try_wait() {
            return Ok(exit);
        }
        self.signal(signal)?;
        self.signal(Signal::CONT)?;
        self.wait(patience)
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// The process has not ended within `patience`. It is left running.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            if let Some(exit) = self.try_wait() {
                return Ok(exit);
            }
            if Instant::now() >= end {
                return Err(HarnessError::new(format!(
                    "process {} is still running after {patience:?}",
                    self.pid()
                )));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the exit status if the process has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// Returns the child, with the pipes that `configure` set up.
    pub(crate) fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = self.pid();
        if let Some(exit) = self.try_wait() {
            return Err(HarnessError::new(format!(
                "process {pid} has ended ({exit}) and cannot receive a signal"
            )));
        }
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|error| HarnessError::caused_by(format!("cannot signal process {pid}"), error))
    }

    fn wait_until(&mut self, what: &str, reached: impl Fn(char) -> bool) -> Result<()> {
        let (pid, end) = (self.pid(), Instant::now() + EFFECT_TIMEOUT);
        while Instant::now() < end {
            if process_state(pid).is_some_and(&reached) {
                return Ok(());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Err(HarnessError::new(format!(
            "process {pid} did not {what} within {EFFECT_TIMEOUT:?}"
        )))
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the path of `program`: a path is returned unchanged, a name is looked up in `PATH`.
///
/// # Errors
/// The program is not installed. The error names `integration/setup.sh`, which installs it.
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

/// Returns the state letter of proc(5): `R` running, `S` sleeping, `T` stopped, `Z` zombie.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain any character, so the last one counts.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

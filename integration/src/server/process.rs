use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{env, thread};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::child::OwnedChild;
use crate::{HarnessError, Result};

/// How often a starting server is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// How long a server may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How much of the log a failed start shows.
const TAIL_LINES: usize = 30;

/// What every server has: a program with its arguments, a temporary folder that it runs in and
/// keeps its data in, a log there, and a process that comes and goes. The folder goes with the
/// value.
#[derive(Debug)]
#[must_use = "dropping it kills the server"]
pub struct Process {
    // Before the folder: fields are dropped in order, and the server ends before its folder is
    // removed.
    child: Option<OwnedChild>,
    folder: TempDir,
    program: PathBuf,
    arguments: Vec<OsString>,
    user: Option<&'static str>,
}

impl Process {
    /// A server that is not started yet. `name` shows in the folder's.
    ///
    /// # Errors
    /// No temporary folder can be made.
    pub fn new(name: &str, program: impl Into<PathBuf>) -> Result<Self> {
        Self::new_in(&env::temp_dir(), name, program)
    }

    /// As [`new`](Self::new), with its folder in this one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_in(parent: &Path, name: &str, program: impl Into<PathBuf>) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("leasehold-{name}-"))
            .tempdir_in(parent)
            .map_err(|error| HarnessError::caused_by("cannot make a temporary folder", error))?;
        Ok(Self {
            child: None,
            folder,
            program: program.into(),
            arguments: Vec::new(),
            user: None,
        })
    }

    /// Another program, from the next start on.
    pub fn set_program(&mut self, program: impl Into<PathBuf>) {
        self.program = program.into();
    }

    /// The folder that it runs in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The arguments of the next start.
    pub fn set_arguments<A: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = A>) {
        self.arguments = arguments.into_iter().map(Into::into).collect();
    }

    /// Runs it as another user from the next start on, which only root can. The folder stays this
    /// one's.
    pub fn run_as(&mut self, user: Option<&'static str>) {
        self.user = user;
    }

    /// Starts it, and returns once `ready` says so. `ready` is asked again and again, and says why
    /// not.
    ///
    /// # Errors
    /// It is already running, cannot be started, ends by itself, or is not ready within `patience`;
    /// the error shows the end of its log, and it is not left running.
    pub fn start(
        &mut self,
        patience: Duration,
        mut ready: impl FnMut() -> Result<(), String>,
    ) -> Result<()> {
        if let Some(pid) = self.pid() {
            return Err(HarnessError::new(format!(
                "{} is already running as {pid}",
                self.program.display()
            )));
        }
        let (output, errors) = self.open_log()?;
        let mut child = OwnedChild::spawn_as(self.user, &self.program, |command| {
            command
                .args(&self.arguments)
                .current_dir(self.folder.path());
            command.stdin(Stdio::null()).stdout(output).stderr(errors);
        })?;
        let end = Instant::now() + patience;
        let complaint = loop {
            if let Some(exit) = child.try_wait() {
                break format!("ended at once ({exit})");
            }
            match ready() {
                Ok(()) => {
                    self.child = Some(child);
                    return Ok(());
                }
                Err(why) if Instant::now() >= end => {
                    break format!("is not ready after {patience:?}: {why}");
                }
                Err(_) => thread::sleep(ASK_EVERY),
            }
        };
        let (program, tail) = (self.program.display(), self.log_tail());
        Err(HarnessError::new(format!(
            "{program} {complaint}; its log ends:\n{tail}"
        )))
    }

    /// Its process id while it runs, paused or not.
    pub fn pid(&mut self) -> Option<u32> {
        self.child
            .as_mut()
            .and_then(|child| child.is_running().then(|| child.pid()))
    }

    /// SIGSTOP: alive, but silent. In effect when this returns.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.running()?.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.running()?.resume()
    }

    /// SIGKILL, paused or not. Does nothing if it does not run.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// SIGTERM, and waits for its end. Does nothing if it does not run.
    ///
    /// # Errors
    /// It does not end; then it is killed.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_by(Signal::TERM)
    }

    /// The same by another signal that it is known to end by.
    pub(crate) fn stop_by(&mut self, signal: Signal) -> Result<()> {
        self.child.take().map_or(Ok(()), |mut child| {
            child.end_by(signal, STOP_PATIENCE).map(drop)
        })
    }

    /// The end of its log, over all its starts.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn running(&mut self) -> Result<&mut OwnedChild> {
        let program = self.program.display();
        self.child
            .as_mut()
            .ok_or_else(|| HarnessError::new(format!("{program} does not run")))
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn open_log(&self) -> Result<(File, File)> {
        let open = || {
            let log = File::options()
                .create(true)
                .append(true)
                .open(self.log_path())?;
            Ok((log.try_clone()?, log))
        };
        open().map_err(|error: std::io::Error| {
            HarnessError::caused_by("cannot write the server's log", error)
        })
    }
}

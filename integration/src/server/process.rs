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

/// The interval at which a starting server is checked for readiness.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The timeout for a server to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// The number of log lines shown when a start fails.
const TAIL_LINES: usize = 30;

/// The process of a server: a program with arguments, a temporary folder for data and log, and the
/// running child if there is one. Dropping it removes the folder.
#[derive(Debug)]
#[must_use = "dropping it kills the server"]
pub struct Process {
    // Declared before the folder: fields are dropped in order, so the server ends before its folder
    // is removed.
    child: Option<OwnedChild>,
    folder: TempDir,
    program: PathBuf,
    arguments: Vec<OsString>,
    user: Option<&'static str>,
}

impl Process {
    /// Creates a server that is not started. The name of its folder contains `name`.
    ///
    /// # Errors
    /// The temporary folder cannot be created.
    pub fn new(name: &str, program: impl Into<PathBuf>) -> Result<Self> {
        Self::new_in(&env::temp_dir(), name, program)
    }

    /// Creates a server like [`new`](Self::new), with its folder in `parent`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_in(parent: &Path, name: &str, program: impl Into<PathBuf>) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("leasehold-{name}-"))
            .tempdir_in(parent)
            .map_err(|error| HarnessError::caused_by("cannot create a temporary folder", error))?;
        Ok(Self {
            child: None,
            folder,
            program: program.into(),
            arguments: Vec::new(),
            user: None,
        })
    }

    /// Sets the program, effective from the next start.
    pub fn set_program(&mut self, program: impl Into<PathBuf>) {
        self.program = program.into();
    }

    /// Returns the working folder of the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sets the arguments, effective from the next start.
    pub fn set_arguments<A: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = A>) {
        self.arguments = arguments.into_iter().map(Into::into).collect();
    }

    /// Runs the server as another user from the next start on, which requires root. The folder
    /// keeps its owner.
    pub fn run_as(&mut self, user: Option<&'static str>) {
        self.user = user;
    }

    /// Starts the server and returns once `ready` succeeds. `ready` is polled, and its error says
    /// what is missing.
    ///
    /// # Errors
    /// The server is already running, cannot be started, exits, or is not ready within `patience`.
    /// The error shows the end of the log, and the server is not left running.
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
                Err(_) => thread::sleep(POLL_INTERVAL),
            }
        };
        let (program, tail) = (self.program.display(), self.log_tail());
        Err(HarnessError::new(format!(
            "{program} {complaint}; its log ends:\n{tail}"
        )))
    }

    /// Returns the process id while the server is running or paused.
    pub fn pid(&mut self) -> Option<u32> {
        self.child
            .as_mut()
            .and_then(|child| child.is_running().then(|| child.pid()))
    }

    /// Sends SIGSTOP: the process lives but does nothing. In effect when this returns.
    ///
    /// # Errors
    /// The server is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.running()?.pause()
    }

    /// Sends SIGCONT.
    ///
    /// # Errors
    /// The server is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.running()?.resume()
    }

    /// Sends SIGKILL, also to a paused server. Does nothing if the server is not running.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Sends SIGTERM and waits for the end. Does nothing if the server is not running.
    ///
    /// # Errors
    /// The server does not end in time. It is then killed.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_by(Signal::TERM)
    }

    /// Stops the server with another signal that ends the program.
    pub(crate) fn stop_by(&mut self, signal: Signal) -> Result<()> {
        self.child.take().map_or(Ok(()), |mut child| {
            child.end_by(signal, STOP_TIMEOUT).map(drop)
        })
    }

    /// Returns the end of the log, which covers all starts.
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

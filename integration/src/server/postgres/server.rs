use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, Signal, kill_process};

use super::builder::PostgresBuilder;
use super::programs::{program, run};
use super::psql::{PSQL, Psql};
use crate::certificates::Certificates;
use crate::child::process_state;
use crate::server::Process;
use crate::{HarnessError, Result};

/// A start takes 50 ms; a busy machine may take a hundred times as long.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The interval at which conditions are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The timeout of the harness's own statements, in seconds, in the format of timeout(1).
const STATEMENT_TIMEOUT: &str = "60";

/// A real PostgreSQL on a free loopback port, in a temporary folder, with a superuser `postgres`
/// and a database of that name. Dropping it kills it with all its processes and removes the folder.
#[derive(Debug)]
#[must_use = "dropping it kills the server"]
pub struct PostgresServer {
    /// `None` only in [`into_process`](Self::into_process).
    process: Option<Process>,
    port: u16,
    certificates: Option<Certificates>,
    builder: PostgresBuilder,
}

impl PostgresServer {
    /// Returns a builder. The defaults are `fsync` off and no TLS.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// Starts a server with the defaults.
    ///
    /// # Errors
    /// See [`PostgresBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Starts a hot standby of this server with the same settings.
    ///
    /// # Errors
    /// See [`PostgresBuilder::start`].
    pub fn start_standby(&self) -> Result<Self> {
        self.builder.clone().start_standby(self)
    }

    pub(super) fn new(
        process: Process,
        port: u16,
        certificates: Option<Certificates>,
        builder: PostgresBuilder,
    ) -> Self {
        Self {
            process: Some(process),
            port,
            certificates,
            builder,
        }
    }

    pub(super) fn into_process(mut self) -> Process {
        self.process
            .take()
            .expect("the process exists until this call")
    }

    /// Returns the superuser's `postgres://` URL. It trusts the authority of a TLS server.
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// Returns the same URL with another address, such as a proxy's.
    pub fn url_at(&self, addr: SocketAddr) -> String {
        let tls = self
            .certificates
            .as_ref()
            .map_or_else(String::new, |certificates| {
                let ca =
                    utf8_percent_encode(&certificates.ca().display().to_string(), NON_ALPHANUMERIC)
                        .to_string();
                format!("?sslmode=verify-full&sslrootcert={ca}")
            });
        format!("postgres://postgres@{addr}/postgres{tls}")
    }

    /// Returns the same URL for another role; `user` is `name` or `name:password`.
    pub fn url_as(&self, user: &str) -> String {
        self.url().replacen("postgres@", &format!("{user}@"), 1)
    }

    /// Returns the address. It stays the same after a restart.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the port. It stays the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the certificates of a TLS server. Clients must trust `ca()`.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Returns the folder with socket, data and log.
    pub fn folder(&self) -> &Path {
        self.process
            .as_ref()
            .expect("the process exists until the drop")
            .folder()
    }

    /// Returns the end of the log, which covers all starts.
    pub fn log_tail(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(String::new, Process::log_tail)
    }

    /// Returns the process id of the postmaster while it is running or paused.
    pub fn pid(&mut self) -> Option<u32> {
        self.process().pid()
    }

    /// Runs `sql` as the superuser over the socket, so never through a proxy. Returns the rows with
    /// fields separated by `|`.
    ///
    /// # Errors
    /// A statement fails, or takes longer than a minute.
    pub fn psql(&self, sql: &str) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg(STATEMENT_TIMEOUT).arg(program("psql")?);
        run(self.psql_arguments(&mut command).args(["-c", sql]))
            .map(|rows| rows.trim_end().to_owned())
    }

    /// Starts a `psql` as the superuser over the socket that stays connected.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn psql_session(&self) -> Result<Psql> {
        Psql::start(program("psql")?, |command| {
            self.psql_arguments(command);
        })
    }

    fn psql_arguments<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .args(PSQL)
            .args(["-U", "postgres", "-d", "postgres", "-h"]);
        command
            .arg(self.folder())
            .args(["-p", &self.port.to_string()])
            .env("PGCONNECT_TIMEOUT", "10")
    }

    /// Sends SIGSTOP to the postmaster: new connections are not served, existing ones still work.
    ///
    /// # Errors
    /// The server is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process().pause()
    }

    /// Sends SIGCONT to the postmaster.
    ///
    /// # Errors
    /// The server is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.process().resume()
    }

    /// Sends SIGSTOP to all processes: the server does nothing until
    /// [`resume_all`](Self::resume_all).
    ///
    /// # Errors
    /// The server is not running.
    pub fn pause_all(&mut self) -> Result<()> {
        self.pause()?;
        self.signal_children(Signal::STOP);
        Ok(())
    }

    /// Sends SIGCONT to all processes.
    ///
    /// # Errors
    /// The server is not running.
    pub fn resume_all(&mut self) -> Result<()> {
        self.signal_children(Signal::CONT);
        self.resume()
    }

    /// Signals all processes but the postmaster, which is paused: it starts no children and reaps
    /// none, so that no pid can be reused.
    fn signal_children(&mut self, signal: Signal) {
        for child in self.pid().map(children_of).unwrap_or_default() {
            // An error means that the process is already gone.
            kill_process(child, signal).unwrap_or_default();
        }
    }

    /// Sends SIGSTOP to a backend: it answers nothing and keeps its locks.
    ///
    /// # Errors
    /// There is no such backend.
    pub fn pause_backend(&mut self, backend: u32) -> Result<()> {
        self.signal(backend, Signal::STOP)
    }

    /// Sends SIGCONT to a backend.
    ///
    /// # Errors
    /// There is no such backend.
    pub fn resume_backend(&mut self, backend: u32) -> Result<()> {
        self.signal(backend, Signal::CONT)
    }

    /// Sends SIGKILL to a backend, as the kernel does when memory is short. The postmaster then
    /// ends all other backends and recovers.
    ///
    /// # Errors
    /// There is no such backend.
    pub fn kill_backend(&mut self, backend: u32) -> Result<()> {
        self.signal(backend, Signal::KILL)
    }

    /// Sends SIGKILL to all processes. Does nothing if the server is not running.
    pub fn kill(&mut self) {
        self.kill_children();
        self.process().kill();
    }

    /// Sends SIGKILL to all processes but the postmaster, which is paused.
    fn kill_children(&mut self) {
        let Some(postmaster) = self.pid() else { return };
        // A paused postmaster starts no children and reaps none, so that no pid can be reused.
        if self.process().pause().is_ok() {
            let children = children_of(postmaster);
            for &child in &children {
                // An error means that the process is already gone.
                kill_process(child, Signal::KILL).unwrap_or_default();
            }
            // A new postmaster does not start while a process uses the shared memory.
            let end = Instant::now() + START_TIMEOUT;
            while children.iter().any(|&child| is_alive(child)) && Instant::now() < end {
                thread::sleep(POLL_INTERVAL);
            }
        }
    }

    /// Stops the server as `pg_ctl stop -m fast` does: clients are disconnected and all data is
    /// written. Does nothing if the server is not running.
    ///
    /// # Errors
    /// The server does not end in time. It is then killed.
    pub fn stop(&mut self) -> Result<()> {
        self.process().stop_by(Signal::INT)
    }

    /// Stops the server as `pg_ctl stop -m immediate` does: the next start recovers. Does nothing
    /// if the server is not running.
    ///
    /// # Errors
    /// The server does not end in time. It is then killed.
    pub fn stop_at_once(&mut self) -> Result<()> {
        self.process().stop_by(Signal::QUIT)
    }

    /// Starts the server again on the same port with its data. Stops it first if it is running.
    ///
    /// # Errors
    /// The server does not stop or does not start; the error shows its log.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_process()
    }

    /// Waits until the server executes statements, for example after
    /// [`kill_backend`](Self::kill_backend).
    ///
    /// # Errors
    /// The server does not answer in time.
    pub fn wait_until_it_answers(&self) -> Result<()> {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            match self.psql("SELECT 1") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    pub(super) fn start_process(&mut self) -> Result<()> {
        let file = self.folder().join("data/postmaster.pid");
        // A killed server leaves its file, which still says `ready`.
        let stale = fs::read_to_string(&file).unwrap_or_default();
        self.process()
            .start(START_TIMEOUT, || match fs::read_to_string(&file) {
                Ok(state) if state != stale && says_ready(&state) => Ok(()),
                Ok(_) => Err("it is still starting".to_owned()),
                Err(error) => Err(error.to_string()),
            })
    }

    fn signal(&mut self, backend: u32, signal: Signal) -> Result<()> {
        let gone = || HarnessError::new(format!("{backend} is not a process of this server"));
        let postmaster = self.pid().ok_or_else(gone)?;
        let child = children_of(postmaster)
            .into_iter()
            .find(|child| child.as_raw_pid().unsigned_abs() == backend);
        kill_process(child.ok_or_else(gone)?, signal).map_err(|error| {
            HarnessError::caused_by(format!("cannot signal backend {backend}"), error)
        })
    }

    fn process(&mut self) -> &mut Process {
        self.process
            .as_mut()
            .expect("the process exists until the drop")
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill_children();
            // A killed server would leave its shared memory segment, and the system has few.
            drop(self.stop_at_once());
        }
    }
}

/// Returns whether this is a state that `pg_ctl` waits for: `ready`, or `standby` on a hot standby.
/// It is the eighth line of postmaster.pid.
fn says_ready(state: &str) -> bool {
    state
        .lines()
        .nth(7)
        .is_some_and(|line| matches!(line.trim_end(), "ready" | "standby"))
}

fn children_of(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Returns the second field after the name in proc(5)'s stat.
fn parent_of(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn is_alive(pid: Pid) -> bool {
    process_state(pid.as_raw_pid().unsigned_abs()).is_some_and(|state| state != 'Z')
}

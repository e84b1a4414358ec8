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

/// It takes 50 ms; a machine that builds something else beside may take a hundred times that.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(2);

/// How long a statement of the harness may take, in seconds, as timeout(1) takes it.
const STATEMENT_PATIENCE: &str = "60";

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
    /// With `fsync` off and without TLS until told otherwise.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// Starts a plain one.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Starts a hot standby of this one, with the same settings.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`].
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
        self.process.take().expect("it is there until now")
    }

    /// `postgres://`, as the superuser. Over TLS if it speaks that, trusting its authority.
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// The same through another address, such as a proxy's.
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

    /// The same as another role; `user` is `name` or `name:password`.
    pub fn url_as(&self, user: &str) -> String {
        self.url().replacen("postgres@", &format!("{user}@"), 1)
    }

    /// Where it listens. The same after a restart.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The port that it listens on. The same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it was started with, if it speaks TLS: its `ca()` is what a client must trust.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The folder with its socket, data and log.
    pub fn folder(&self) -> &Path {
        self.process
            .as_ref()
            .expect("it is there until it is dropped")
            .folder()
    }

    /// The end of its log, over all its starts.
    pub fn log_tail(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(String::new, Process::log_tail)
    }

    /// The id of its first process, the postmaster, while it runs, paused or not.
    pub fn pid(&mut self) -> Option<u32> {
        self.process().pid()
    }

    /// Runs `sql` as the superuser, over the socket: not through any proxy. Its rows, fields
    /// separated by `|`.
    ///
    /// # Errors
    /// It fails, or takes longer than a minute.
    pub fn psql(&self, sql: &str) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg(STATEMENT_PATIENCE).arg(program("psql")?);
        run(self.psql_arguments(&mut command).args(["-c", sql]))
            .map(|rows| rows.trim_end().to_owned())
    }

    /// A `psql` that stays, as the superuser, over the socket.
    ///
    /// # Errors
    /// It cannot be started.
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

    /// SIGSTOP to the postmaster: no new connections are served, those that there are go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.process().pause()
    }

    /// SIGCONT to the postmaster.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.process().resume()
    }

    /// SIGSTOP to a backend: it answers nothing and keeps its locks.
    ///
    /// # Errors
    /// No such backend is there.
    pub fn pause_backend(&mut self, backend: u32) -> Result<()> {
        self.signal(backend, Signal::STOP)
    }

    /// SIGCONT to a backend.
    ///
    /// # Errors
    /// No such backend is there.
    pub fn resume_backend(&mut self, backend: u32) -> Result<()> {
        self.signal(backend, Signal::CONT)
    }

    /// SIGKILL to a backend, as the kernel does where memory is short: the postmaster then ends all
    /// others and recovers.
    ///
    /// # Errors
    /// No such backend is there.
    pub fn kill_backend(&mut self, backend: u32) -> Result<()> {
        self.signal(backend, Signal::KILL)
    }

    /// SIGKILL to all its processes. Does nothing if it does not run.
    pub fn kill(&mut self) {
        self.kill_children();
        self.process().kill();
    }

    /// SIGKILL to all but the postmaster, which is stopped then.
    fn kill_children(&mut self) {
        let Some(postmaster) = self.pid() else { return };
        // Stopped, it starts no more children and reaps none, so that no pid can become another's.
        if self.process().pause().is_ok() {
            let children = children_of(postmaster);
            for &child in &children {
                // Gone already is as good.
                kill_process(child, Signal::KILL).unwrap_or_default();
            }
            // What still uses the shared memory would keep a new postmaster from starting.
            let end = Instant::now() + START_PATIENCE;
            while children.iter().any(|&child| is_alive(child)) && Instant::now() < end {
                thread::sleep(GLANCE);
            }
        }
    }

    /// Ends it as `pg_ctl stop -m fast` does: clients are cut off, all is written. Does nothing if
    /// it does not run.
    ///
    /// # Errors
    /// It does not end; then it is killed.
    pub fn stop(&mut self) -> Result<()> {
        self.process().stop_by(Signal::INT)
    }

    /// Ends it as `pg_ctl stop -m immediate` does: the next start recovers. Does nothing if it does
    /// not run.
    ///
    /// # Errors
    /// It does not end; then it is killed.
    pub fn stop_at_once(&mut self) -> Result<()> {
        self.process().stop_by(Signal::QUIT)
    }

    /// Starts it again on the same port, with its data; stops it first if it runs.
    ///
    /// # Errors
    /// It does not stop or does not start; the error shows its log.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_process()
    }

    /// Waits until it takes statements (again), such as after [`kill_backend`](Self::kill_backend).
    ///
    /// # Errors
    /// It does not.
    pub fn wait_until_it_answers(&self) -> Result<()> {
        let end = Instant::now() + START_PATIENCE;
        loop {
            match self.psql("SELECT 1") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => thread::sleep(GLANCE),
            }
        }
    }

    pub(super) fn start_process(&mut self) -> Result<()> {
        let file = self.folder().join("data/postmaster.pid");
        // A killed one leaves its file, which says that it is ready.
        let stale = fs::read_to_string(&file).unwrap_or_default();
        self.process()
            .start(START_PATIENCE, || match fs::read_to_string(&file) {
                Ok(state) if state != stale && says_ready(&state) => Ok(()),
                Ok(_) => Err("it is still starting".to_owned()),
                Err(error) => Err(error.to_string()),
            })
    }

    fn signal(&mut self, backend: u32, signal: Signal) -> Result<()> {
        let gone = || HarnessError::new(format!("{backend} is no process of this server"));
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
            .expect("it is there until it is dropped")
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill_children();
            // Killed, it would leave its shared memory, of which the system has few segments.
            drop(self.stop_at_once());
        }
    }
}

/// The eighth line of postmaster.pid is what `pg_ctl` waits for: `ready`, on a hot standby
/// `standby`.
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

/// The second field after the name in proc(5)'s stat.
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

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::free_port;
use super::postgres::{give_to_owner, unprivileged};
use super::{PostgresServer, Process, Psql};
use crate::child::find_program;
use crate::{HarnessError, Result};

/// A start takes 20 ms; a busy machine may take a hundred times as long.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Another test may take a chosen port before the pooler binds it.
const PORTS_TRIED: usize = 5;

/// The time for which a client keeps its server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Until the client disconnects.
    Session,
    /// For one transaction.
    Transaction,
    /// For one statement.
    Statement,
}

/// A real PgBouncer in front of a [`PostgresServer`], on a free loopback port. Dropping it kills
/// it.
#[derive(Debug)]
#[must_use = "dropping it kills the pooler"]
pub struct PgBouncer {
    // Keeps the pooler running.
    _process: Process,
    port: u16,
}

impl PgBouncer {
    /// Starts a PgBouncer with default settings apart from the mode: up to 20 server connections.
    /// Every client is `postgres`.
    ///
    /// # Errors
    /// PgBouncer is not installed (`integration/setup.sh` installs it), or does not start; the
    /// error shows its log.
    pub fn start(server: &PostgresServer, mode: PoolMode) -> Result<Self> {
        Self::start_with(server, mode, &[])
    }

    /// Starts a PgBouncer with further settings of pgbouncer.ini.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        server: &PostgresServer,
        mode: PoolMode,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let mut process = Process::new("pgbouncer", program()?)?;
        process.run_as(unprivileged());
        process.set_arguments(["pgbouncer.ini"]);
        let mut tries = 0;
        loop {
            let port = free_port()?;
            let config = process.folder().join("pgbouncer.ini");
            fs::write(config, configuration(server, port, mode, settings))
                .map_err(|error| HarnessError::caused_by("cannot write pgbouncer.ini", error))?;
            give_to_owner(process.folder())?;
            tries += 1;
            let answers = || {
                TcpStream::connect(loopback(port))
                    .map(drop)
                    .map_err(|error| error.to_string())
            };
            match process.start(START_TIMEOUT, answers) {
                Ok(()) => {
                    return Ok(Self {
                        _process: process,
                        port,
                    });
                }
                Err(_)
                    if tries < PORTS_TRIED
                        && process.log_tail().contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the address of the pooler.
    pub fn addr(&self) -> SocketAddr {
        loopback(self.port)
    }

    /// Returns the `postgres://` URL of the pooler.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.addr())
    }

    /// Changes the mode, also for connected clients, which lose their server connection at the end
    /// of the current session, transaction or statement.
    ///
    /// # Errors
    /// The pooler rejects the command.
    pub fn set_mode(&self, mode: PoolMode) -> Result<()> {
        let mut console = Psql::connect(&format!("postgres://postgres@{}/pgbouncer", self.addr()))?;
        console
            .ask(&format!("SET pool_mode = '{}'", mode.name()), START_TIMEOUT)
            .map(drop)
    }
}

impl PoolMode {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

fn configuration(
    server: &PostgresServer,
    port: u16,
    mode: PoolMode,
    settings: &[(&str, &str)],
) -> String {
    let mode = mode.name();
    let mut config = format!(
        "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = any\nadmin_users = postgres\npool_mode = {mode}\n",
        server.port()
    );
    for (name, value) in settings {
        writeln!(config, "{name} = {value}").expect("writing to a String never fails");
    }
    config
}

/// Returns the path of the program. Debian installs it in a folder that is only in root's `PATH`.
fn program() -> Result<PathBuf> {
    find_program("pgbouncer")
        .or_else(|missing| find_program("/usr/sbin/pgbouncer").map_err(|_| missing))
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

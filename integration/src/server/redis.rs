use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use redis::Connection;

use super::Process;
use super::free_port;
use crate::certificates::Certificates;
use crate::{HarnessError, Result};

/// A start takes 20 ms; a busy machine may take a hundred times as long.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Another test may take a chosen port before the server binds it.
const PORTS_TRIED: usize = 5;

/// The timeout of the harness's own commands to a running server.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// The data that a Redis server keeps across restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Persistence {
    /// No data: the server restarts empty.
    #[default]
    None,
    /// The data of the last `SAVE`, `BGSAVE` or SIGTERM. SIGKILL loses later writes.
    Snapshot,
    /// Every confirmed write (`appendfsync always`).
    EveryWrite,
}

/// Options of a [`RedisServer`].
#[derive(Debug, Clone)]
#[must_use = "nothing is started until `start`"]
pub struct RedisBuilder {
    program: PathBuf,
    persistence: Persistence,
    password: Option<String>,
    users: Vec<(String, String, String)>,
    tls: bool,
    arguments: Vec<OsString>,
}

impl RedisBuilder {
    /// Sets the data that the server keeps across restarts.
    pub fn persistence(mut self, persistence: Persistence) -> Self {
        self.persistence = persistence;
        self
    }

    /// Sets the password of the default user (`requirepass`), which [`RedisServer::url`] contains.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Adds a user with the given access rules, such as `~shop:* &* +@all`.
    pub fn user(mut self, name: &str, password: &str, rules: &str) -> Self {
        self.users
            .push((name.to_owned(), password.to_owned(), rules.to_owned()));
        self
    }

    /// Accepts only TLS on the port, with a certificate of [`RedisServer::certificates`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Adds an argument, such as `--maxmemory-policy`, followed by its value in another call.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets another program than `redis-server`, such as `valkey-server`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Starts the server and returns once it answers.
    ///
    /// # Errors
    /// The program is not installed, or does not start; the error shows its log.
    pub fn start(self) -> Result<RedisServer> {
        let mut process = Process::new("redis", &self.program)?;
        let certificates = if self.tls {
            Some(Certificates::generate(process.folder())?)
        } else {
            None
        };
        let socket = process.folder().join("redis.sock");
        let mut tries = 0;
        let port = loop {
            let port = free_port()?;
            let config = self.config(port, &socket, certificates.as_ref());
            fs::write(process.folder().join("redis.conf"), config)
                .map_err(|error| HarnessError::caused_by("cannot write redis.conf", error))?;
            let arguments = [OsString::from("redis.conf")]
                .into_iter()
                .chain(self.arguments.iter().cloned());
            process.set_arguments(arguments);
            tries += 1;
            match process.start(START_TIMEOUT, || answers(&socket, self.password.as_deref())) {
                Ok(()) => break port,
                Err(_)
                    if tries < PORTS_TRIED
                        && process.log_tail().contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
        };
        Ok(RedisServer {
            process,
            port,
            socket,
            password: self.password,
            certificates,
        })
    }

    fn config(&self, port: u16, socket: &Path, certificates: Option<&Certificates>) -> String {
        let mut config = String::new();
        let mut line = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
            writeln!(config, "{}", words.join(" ")).expect("writing to a String never fails");
        };
        let (port, path) = (port.to_string(), |path: PathBuf| path.display().to_string());
        line(&["bind", "127.0.0.1"]);
        // The harness connects over the socket, without TLS and without a proxy.
        line(&["unixsocket", &path(socket.to_owned())]);
        match certificates {
            None => line(&["port", &port]),
            Some(certificates) => {
                line(&["port", "0"]);
                line(&["tls-port", &port]);
                line(&["tls-cert-file", &path(certificates.certificate())]);
                line(&["tls-key-file", &path(certificates.key())]);
                line(&["tls-ca-cert-file", &path(certificates.ca())]);
                line(&["tls-auth-clients", "no"]);
            }
        }
        match self.persistence {
            Persistence::None => line(&["save", ""]),
            // Any schedule makes SIGTERM save; this one never saves by itself during a test.
            Persistence::Snapshot => line(&["save", "86400", "1"]),
            Persistence::EveryWrite => {
                line(&["save", ""]);
                line(&["appendonly", "yes"]);
                line(&["appendfsync", "always"]);
            }
        }
        if let Some(password) = &self.password {
            line(&["requirepass", password]);
        }
        for (name, password, rules) in &self.users {
            let password = format!(">{password}");
            let words: Vec<_> = ["user", name, "on", &password]
                .into_iter()
                .chain(rules.split_whitespace())
                .collect();
            line(&words);
        }
        config
    }
}

/// A real `redis-server` on a free loopback port, in a temporary folder. Dropping it kills it and
/// removes the folder.
#[derive(Debug)]
#[must_use = "dropping it kills the server"]
pub struct RedisServer {
    process: Process,
    port: u16,
    socket: PathBuf,
    password: Option<String>,
    certificates: Option<Certificates>,
}

impl RedisServer {
    /// Returns a builder. The defaults are no password, no TLS and no persistence.
    pub fn builder() -> RedisBuilder {
        RedisBuilder {
            program: "redis-server".into(),
            persistence: Persistence::None,
            password: None,
            users: Vec::new(),
            tls: false,
            arguments: Vec::new(),
        }
    }

    /// Starts a server with the defaults.
    ///
    /// # Errors
    /// See [`RedisBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Returns the `redis://` or `rediss://` URL, with the default user's password if there is one.
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// Returns the same URL with another address, such as a proxy's.
    pub fn url_at(&self, addr: SocketAddr) -> String {
        let password = self
            .password
            .as_ref()
            .map_or_else(String::new, |password| format!(":{}@", encoded(password)));
        format!("{}://{password}{addr}/", self.scheme())
    }

    /// Returns the same URL for another user.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!(
            "{}://{}:{}@{}/",
            self.scheme(),
            encoded(user),
            encoded(password),
            self.addr()
        )
    }

    /// Returns the `redis+unix://` URL, with the default user's password if there is one.
    pub fn unix_url(&self) -> String {
        socket_url(&self.socket, self.password.as_deref())
    }

    /// Returns the address. It stays the same after a restart.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the port. It stays the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path of the unix socket, which never uses TLS.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the certificates of a TLS server. Clients must trust `ca()`.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Returns the folder with data, configuration and log.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Returns the end of the log, which covers all starts.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Returns the process id while the server is running or paused.
    pub fn pid(&mut self) -> Option<u32> {
        self.process.pid()
    }

    /// Opens a connection of the harness as the default user over the unix socket, so never through
    /// a proxy.
    ///
    /// # Errors
    /// The server is not running, or does not answer.
    pub fn connection(&self) -> Result<Connection> {
        let connect = || {
            let client = redis::Client::open(self.unix_url())?;
            let connection = client.get_connection_with_timeout(COMMAND_TIMEOUT)?;
            connection.set_read_timeout(Some(COMMAND_TIMEOUT))?;
            connection.set_write_timeout(Some(COMMAND_TIMEOUT))?;
            Ok(connection)
        };
        connect().map_err(|error: redis::RedisError| {
            HarnessError::caused_by("cannot connect to Redis", error)
        })
    }

    /// Sends SIGSTOP: connections stay open and the kernel accepts new ones, but nothing is
    /// answered. In effect when this returns.
    ///
    /// # Errors
    /// The server is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// Sends SIGCONT. Keys that have meanwhile expired are removed before queued requests are
    /// executed.
    ///
    /// # Errors
    /// The server is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// Sends SIGKILL: connections are reset and nothing is saved. Does nothing if the server is not
    /// running.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM and waits for the end. Data is saved with [`Persistence::Snapshot`]. Does
    /// nothing if the server is not running.
    ///
    /// # Errors
    /// The server does not end in time. It is then killed.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    /// Starts the server again on the same port and folder, with the data it kept. Stops it first
    /// if it is running.
    ///
    /// # Errors
    /// The server does not stop or does not start; the error shows its log.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        let (socket, password) = (&self.socket, self.password.as_deref());
        self.process
            .start(START_TIMEOUT, || answers(socket, password))
    }

    /// Kills the server and removes its data, so that [`restart`](Self::restart) starts it empty.
    ///
    /// # Errors
    /// The data cannot be removed.
    pub fn wipe(&mut self) -> Result<()> {
        self.process.kill();
        let folder = self.process.folder();
        let gone = |outcome: std::io::Result<()>| match outcome {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(
                HarnessError::caused_by("cannot remove the data of Redis", error),
            ),
            _ => Ok(()),
        };
        gone(fs::remove_file(folder.join("dump.rdb")))?;
        gone(fs::remove_dir_all(folder.join("appendonlydir")))
    }

    /// Kills the server and removes the last `bytes` of the file written by
    /// [`Persistence::EveryWrite`], as a power failure does on a disk that confirmed writes too
    /// early.
    ///
    /// # Errors
    /// There is no such file, or it is shorter.
    pub fn cut_log_tail(&mut self, bytes: u64) -> Result<()> {
        self.process.kill();
        let cut = || {
            let file = newest_increment(&self.process.folder().join("appendonlydir"))?;
            let file = fs::File::options().write(true).open(file)?;
            let kept = file
                .metadata()?
                .len()
                .checked_sub(bytes)
                .ok_or_else(|| std::io::Error::other("too short"))?;
            file.set_len(kept)
        };
        cut().map_err(|error| HarnessError::caused_by("cannot cut the append-only file", error))
    }

    fn scheme(&self) -> &'static str {
        if self.certificates.is_some() {
            "rediss"
        } else {
            "redis"
        }
    }
}

/// Returns whether the server accepts commands. While it loads its data, it listens but answers
/// with an error.
fn answers(socket: &Path, password: Option<&str>) -> Result<(), String> {
    let ask = || {
        let client = redis::Client::open(socket_url(socket, password))?;
        let mut connection = client.get_connection_with_timeout(COMMAND_TIMEOUT)?;
        connection.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        redis::cmd("PING").exec(&mut connection)
    };
    ask().map_err(|error: redis::RedisError| error.to_string())
}

fn socket_url(socket: &Path, password: Option<&str>) -> String {
    let password = password.map_or_else(String::new, |password| {
        format!("?pass={}", encoded(password))
    });
    format!("redis+unix://{}{password}", socket.display())
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Returns `word` in quotes as redis.conf accepts any bytes.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Returns the current append-only file. Increments are numbered, and there is only one except
/// during a rewrite.
fn newest_increment(folder: &Path) -> std::io::Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .max()
        .ok_or_else(|| std::io::Error::other("no increment"))
}

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

/// It takes 20 ms; a machine that builds something else beside may take a hundred times that.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// A picked port can be taken by another test before the server has it.
const PORTS_TRIED: usize = 5;

/// A command of the harness itself to a server that runs.
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

/// What a Redis keeps through a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: it comes back empty.
    #[default]
    None,
    /// What it had at the last `SAVE`, `BGSAVE` or SIGTERM; SIGKILL loses what came later.
    Snapshot,
    /// Everything that it has answered (`appendfsync always`).
    EveryWrite,
}

/// How a [`RedisServer`] is to be.
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
    /// What it keeps through a restart.
    pub fn persistence(mut self, persistence: Persistence) -> Self {
        self.persistence = persistence;
        self
    }

    /// The password of the default user (`requirepass`), also in [`RedisServer::url`].
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// One more user, with the given access rules, such as `~shop:* &* +@all`.
    pub fn user(mut self, name: &str, password: &str, rules: &str) -> Self {
        self.users
            .push((name.to_owned(), password.to_owned(), rules.to_owned()));
        self
    }

    /// Speaks TLS on its port, and only that, with a certificate of [`RedisServer::certificates`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// A further argument, such as `--maxmemory-policy` and then its value.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Another program than `redis-server`, such as `valkey-server`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Starts it, and returns once it answers.
    ///
    /// # Errors
    /// The program is not installed, or it does not start; the error shows its log.
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
            match process.start(START_PATIENCE, || {
                answers(&socket, self.password.as_deref())
            }) {
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
            writeln!(config, "{}", words.join(" ")).expect("a String takes all");
        };
        let (port, path) = (port.to_string(), |path: PathBuf| path.display().to_string());
        line(&["bind", "127.0.0.1"]);
        // The harness itself always speaks over the socket: without TLS, and past any proxy.
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
            // Any schedule makes SIGTERM save; this one is too slow to save by itself in a test.
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
    /// Without password, TLS and persistence until told otherwise.
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

    /// Starts a plain one.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// `redis://` or `rediss://`, with the default user's password if there is one.
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// The same through another address, such as a proxy's.
    pub fn url_at(&self, addr: SocketAddr) -> String {
        let password = self
            .password
            .as_ref()
            .map_or_else(String::new, |password| format!(":{}@", encoded(password)));
        format!("{}://{password}{addr}/", self.scheme())
    }

    /// The same as another user.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!(
            "{}://{}:{}@{}/",
            self.scheme(),
            encoded(user),
            encoded(password),
            self.addr()
        )
    }

    /// `redis+unix://`, with the default user's password if there is one.
    pub fn unix_url(&self) -> String {
        socket_url(&self.socket, self.password.as_deref())
    }

    /// Where it listens. The same after a restart.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The port that it listens on. The same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The unix socket that it listens on too, without TLS even where the port speaks it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it was started with, if it speaks TLS: its `ca()` is what a client must trust.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The folder with its data, configuration and log.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// The end of its log, over all its starts.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Its process id while it runs, paused or not.
    pub fn pid(&mut self) -> Option<u32> {
        self.process.pid()
    }

    /// A connection of the harness's own as the default user, over the unix socket: not through any
    /// proxy.
    ///
    /// # Errors
    /// It does not run, or does not answer.
    pub fn connection(&self) -> Result<Connection> {
        let connect = || {
            let client = redis::Client::open(self.unix_url())?;
            let connection = client.get_connection_with_timeout(COMMAND_PATIENCE)?;
            connection.set_read_timeout(Some(COMMAND_PATIENCE))?;
            connection.set_write_timeout(Some(COMMAND_PATIENCE))?;
            Ok(connection)
        };
        connect().map_err(|error: redis::RedisError| {
            HarnessError::caused_by("cannot connect to Redis", error)
        })
    }

    /// SIGSTOP: connections stay open, and new ones are taken by the kernel, but nothing is
    /// answered. In effect when this returns.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT. What was sent in between is now carried out, and keys expire before that by the
    /// time that has passed.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// SIGKILL: connections are reset, and nothing is saved. Does nothing if it does not run.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and waits for its end: saves where [`Persistence::Snapshot`] says so. Does nothing
    /// if it does not run.
    ///
    /// # Errors
    /// It does not end; then it is killed.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    /// Starts it again on the same port and folder, with whatever data it kept; stops it first if
    /// it runs.
    ///
    /// # Errors
    /// It does not stop or does not start; the error shows its log.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        let (socket, password) = (&self.socket, self.password.as_deref());
        self.process
            .start(START_PATIENCE, || answers(socket, password))
    }

    /// Kills it and removes all that it has saved. [`restart`](Self::restart) then brings it back
    /// empty.
    ///
    /// # Errors
    /// Its data cannot be removed.
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

    /// Kills it and cuts `bytes` off the end of what [`Persistence::EveryWrite`] has written, as a
    /// loss of power does on a disk that had confirmed more than it had.
    ///
    /// # Errors
    /// It has written no such file, or less than that.
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

/// Whether it takes commands: it listens before it has loaded its data, and answers with an error
/// until then.
fn answers(socket: &Path, password: Option<&str>) -> Result<(), String> {
    let ask = || {
        let client = redis::Client::open(socket_url(socket, password))?;
        let mut connection = client.get_connection_with_timeout(COMMAND_PATIENCE)?;
        connection.set_read_timeout(Some(COMMAND_PATIENCE))?;
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

/// As redis.conf takes any bytes.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The file that is being appended to: increments are numbered, and the folder holds one except
/// during a rewrite.
fn newest_increment(folder: &Path) -> std::io::Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .max()
        .ok_or_else(|| std::io::Error::other("no increment"))
}

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use super::{ZookeeperBuilder, java, log};
use crate::{
    HarnessError, Result,
    certificates::Certificates,
    server::{Process, free_port},
};

/// A start takes 0.3 s, and three take 1.5 s; a busy machine may take many times as long.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(40);

/// The interval at which a starting server is checked for readiness.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The timeout of the harness's own requests to a running server.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Another test may take a chosen port before the server binds it.
pub(super) const PORTS_TRIED: usize = 5;

/// A real ZooKeeper server, alone or as a member of an ensemble, on free loopback ports, in a
/// temporary folder. Dropping it kills it.
#[derive(Debug)]
#[must_use = "dropping it kills the server"]
pub struct ZookeeperServer {
    process: Process,
    port: u16,
    secure_port: Option<u16>,
    certificates: Option<Certificates>,
}

impl ZookeeperServer {
    /// Returns a builder. The defaults are a tick of 0.5 s and no TLS.
    pub fn builder() -> ZookeeperBuilder {
        ZookeeperBuilder::default()
    }

    /// Starts a standalone server. Its shortest session timeout is 1 s.
    ///
    /// # Errors
    /// See [`ZookeeperBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Returns the `zookeeper://` URL of this server alone.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// Returns the same URL with another address, such as a proxy's.
    #[must_use]
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("zookeeper://{addr}")
    }

    /// Returns the address. It stays the same after a restart.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the TLS address, if the server has one.
    #[must_use]
    pub fn secure_addr(&self) -> Option<SocketAddr> {
        self.secure_port
            .map(|port| (Ipv4Addr::LOCALHOST, port).into())
    }

    /// Returns the `zookeepers://` URL with this authority trusted.
    ///
    /// # Panics
    /// Panics if the server has no TLS port.
    #[must_use]
    pub fn secure_url(&self, trusted: &Certificates) -> String {
        let addr = self.secure_addr().expect("the server has no TLS port");
        format!("zookeepers://{addr}?ca={}", trusted.ca().display())
    }

    /// Returns the certificates of a TLS server. Clients must trust `ca()`.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Returns the folder with data, configuration and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Returns the process id while the server is running or paused.
    pub fn pid(&mut self) -> Option<u32> {
        self.process.pid()
    }

    /// Sends SIGSTOP: connections stay open, but nothing is answered. In effect when this returns.
    ///
    /// # Errors
    /// The server is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// Sends SIGCONT.
    ///
    /// # Errors
    /// The server is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// Sends SIGKILL. Confirmed writes survive, because the operating system has them.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again with its data. Stops it first if it is running.
    ///
    /// # Errors
    /// The server does not stop or does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.launch()?;
        self.wait_until_serving()
    }

    /// The name of the child node that [`spend_numbers`](Self::spend_numbers) creates.
    pub const SPENT: &'static str = "spent";

    /// Restarts the server so that the next sequential child of `parent` gets `number`, as if it
    /// had already had that many children. Leaves one child, [`SPENT`](Self::SPENT).
    ///
    /// # Errors
    /// The server does not answer, does not stop, or does not start.
    pub fn spend_numbers(&mut self, parent: &str, number: i32) -> Result<()> {
        let answer = self.ask("srvr")?;
        let zxid = answer
            .lines()
            .find_map(|line| line.strip_prefix("Zxid: 0x"));
        let zxid = zxid.and_then(|zxid| i64::from_str_radix(zxid.trim(), 16).ok());
        let zxid =
            zxid.ok_or_else(|| HarnessError::new("ZooKeeper did not report its transaction id"))?;
        // Leaves room for transactions still in progress, such as the end of a session.
        let zxid = zxid + 1_000;
        self.process.stop()?;
        let path = self
            .folder()
            .join("data/version-2")
            .join(format!("log.{zxid:x}"));
        std::fs::write(
            path,
            log::creation(zxid, &format!("{parent}/{}", Self::SPENT), number),
        )
        .map_err(|error| HarnessError::caused_by("cannot write ZooKeeper's log", error))?;
        self.launch()?;
        self.wait_until_serving()
    }

    /// Returns the answer to a four-letter word, such as `srvr`, `mntr` or `dump`.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn ask(&self, word: &str) -> Result<String> {
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&self.addr(), ASK_TIMEOUT)?;
            stream.set_read_timeout(Some(ASK_TIMEOUT))?;
            stream.write_all(word.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().map_err(|error: std::io::Error| {
            HarnessError::caused_by(format!("ZooKeeper did not answer {word}"), error)
        })
    }

    /// Returns `standalone`, `leader` or `follower`.
    ///
    /// # Errors
    /// The server does not answer, or is not serving at present.
    pub fn mode(&self) -> Result<String> {
        let answer = self.ask("srvr")?;
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
        mode.map(str::to_owned).ok_or_else(|| {
            HarnessError::new(format!("ZooKeeper does not serve: {}", answer.trim()))
        })
    }

    /// Returns the paths of all ephemeral nodes.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn ephemerals(&self) -> Result<BTreeSet<String>> {
        let answer = self.ask("dump")?;
        let (_, nodes) = answer
            .split_once("Sessions with Ephemerals")
            .unwrap_or_default();
        let paths = nodes
            .lines()
            .filter_map(|line| line.strip_prefix('\t'))
            .filter(|path| path.starts_with('/'));
        Ok(paths.map(str::to_owned).collect())
    }

    /// Returns a metric by its name in the output of `mntr`.
    ///
    /// # Errors
    /// The server does not answer, or has no such metric.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let answer = self.ask("mntr")?;
        let value = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        // Averages are written with a decimal point.
        let value = value.and_then(|value| value.trim().split('.').next()?.parse().ok());
        value.ok_or_else(|| HarnessError::new(format!("ZooKeeper has no metric {name}")))
    }

    pub(super) fn prepare(
        builder: &ZookeeperBuilder,
        main: &str,
        id: usize,
        mut own: Vec<(String, String)>,
    ) -> Result<Self> {
        let port = free_port()?;
        let secure_port = if builder.tls {
            Some(free_port()?)
        } else {
            None
        };
        own.push(("clientPort".to_owned(), port.to_string()));
        own.extend(secure_port.map(|port| ("secureClientPort".to_owned(), port.to_string())));
        let (process, certificates) = builder.prepare(main, id, &own)?;
        Ok(Self {
            process,
            port,
            secure_port,
            certificates,
        })
    }

    /// Starts the process without waiting, because a member serves only with a majority.
    pub(super) fn launch(&mut self) -> Result<()> {
        self.process.start(START_TIMEOUT, || Ok(()))
    }

    pub(super) fn wait_until_serving(&mut self) -> Result<()> {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            let why = match self.mode() {
                Ok(_) => return Ok(()),
                Err(why) => why,
            };
            if self.pid().is_none() || Instant::now() >= end {
                let tail = self.process.log_tail();
                return Err(HarnessError::new(format!(
                    "ZooKeeper does not start: {why}; its log ends:\n{tail}"
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

pub(super) fn start_single(builder: &ZookeeperBuilder) -> Result<ZookeeperServer> {
    with_free_ports(|| {
        let mut server = ZookeeperServer::prepare(builder, java::SINGLE, 1, Vec::new())?;
        server.launch()?;
        server.wait_until_serving()?;
        Ok(server)
    })
}

pub(super) fn with_free_ports<T>(start: impl Fn() -> Result<T>) -> Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        match start() {
            Err(error)
                if tries < PORTS_TRIED && error.to_string().contains("Address already in use") => {}
            started => return started,
        }
    }
}

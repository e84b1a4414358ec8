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

/// It takes 0.3 s, and three take 1.5 s; a machine that builds something else beside may take many
/// times that.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(40);

/// How often a server that starts is asked.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A question of the harness itself to a server that runs.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// A picked port can be taken by another test before the server has it.
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
    /// A tick of 0.5 s, no TLS, until told otherwise.
    pub fn builder() -> ZookeeperBuilder {
        ZookeeperBuilder::default()
    }

    /// Starts one that is alone. The shortest session is 1 s.
    ///
    /// # Errors
    /// As [`ZookeeperBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// `zookeeper://` with this server alone.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// The same through another address, such as a proxy's.
    #[must_use]
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("zookeeper://{addr}")
    }

    /// Where it listens. The same after a restart.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where it speaks TLS, if it does.
    #[must_use]
    pub fn secure_addr(&self) -> Option<SocketAddr> {
        self.secure_port
            .map(|port| (Ipv4Addr::LOCALHOST, port).into())
    }

    /// `zookeepers://` over TLS, with this authority trusted.
    ///
    /// # Panics
    /// It speaks no TLS.
    #[must_use]
    pub fn secure_url(&self, trusted: &Certificates) -> String {
        let addr = self.secure_addr().expect("it was started with TLS");
        format!("zookeepers://{addr}?ca={}", trusted.ca().display())
    }

    /// What it was started with, if it speaks TLS: its `ca()` is what a client must trust.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The folder with its data, configuration and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Its process id while it runs, paused or not.
    pub fn pid(&mut self) -> Option<u32> {
        self.process.pid()
    }

    /// SIGSTOP: connections stay open, but nothing is answered. In effect when this returns.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// SIGKILL. What it had answered is on its disk, as long as the machine lives.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again with its data; stops it first if it runs.
    ///
    /// # Errors
    /// It does not stop or does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.launch()?;
        self.wait_until_serving()
    }

    /// The name of the child that [`spend_numbers`](Self::spend_numbers) leaves.
    pub const SPENT: &'static str = "spent";

    /// Restarts it so that the next sequential child of `parent` gets `number`, as if it had had so
    /// many children. Leaves one child, [`SPENT`](Self::SPENT).
    ///
    /// # Errors
    /// It does not answer, does not stop, or does not start.
    pub fn spend_numbers(&mut self, parent: &str, number: i32) -> Result<()> {
        let answer = self.ask("srvr")?;
        let zxid = answer
            .lines()
            .find_map(|line| line.strip_prefix("Zxid: 0x"));
        let zxid = zxid.and_then(|zxid| i64::from_str_radix(zxid.trim(), 16).ok());
        let zxid =
            zxid.ok_or_else(|| HarnessError::new("ZooKeeper does not say its transaction"))?;
        // Whatever is still under way, such as the end of a session, is before.
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

    /// The answer to a four-letter word, such as `srvr`, `mntr` or `dump`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask(&self, word: &str) -> Result<String> {
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&self.addr(), ASK_PATIENCE)?;
            stream.set_read_timeout(Some(ASK_PATIENCE))?;
            stream.write_all(word.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().map_err(|error: std::io::Error| {
            HarnessError::caused_by(format!("ZooKeeper has no answer to {word}"), error)
        })
    }

    /// `standalone`, `leader` or `follower`.
    ///
    /// # Errors
    /// It does not answer, or serves nobody at present.
    pub fn mode(&self) -> Result<String> {
        let answer = self.ask("srvr")?;
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
        mode.map(str::to_owned).ok_or_else(|| {
            HarnessError::new(format!("ZooKeeper does not serve: {}", answer.trim()))
        })
    }

    /// The paths of all nodes that belong to a session.
    ///
    /// # Errors
    /// It does not answer.
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

    /// What it counts, by the names of `mntr`.
    ///
    /// # Errors
    /// It does not answer, or does not count that.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let answer = self.ask("mntr")?;
        let value = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        // Some are averages, and written with a point.
        let value = value.and_then(|value| value.trim().split('.').next()?.parse().ok());
        value.ok_or_else(|| HarnessError::new(format!("ZooKeeper does not count {name}")))
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

    /// Starts the process, and does not wait for anything: a member serves only with a majority.
    pub(super) fn launch(&mut self) -> Result<()> {
        self.process.start(START_PATIENCE, || Ok(()))
    }

    pub(super) fn wait_until_serving(&mut self) -> Result<()> {
        let end = Instant::now() + START_PATIENCE;
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
            std::thread::sleep(ASK_EVERY);
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

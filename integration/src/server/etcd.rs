use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use super::Process;
use crate::port::free_port;
use crate::{HarnessError, Result};

/// It takes 0.1 s; a machine that builds something else beside may take a hundred times that.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// A question of the harness itself to a server that runs.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// A picked port can be taken by another test before the server has it.
const PORTS_TRIED: usize = 5;

/// A real etcd cluster of one or more members on free loopback ports, in temporary folders. Dropping it kills them.
#[derive(Debug)]
#[must_use = "dropping it kills the servers"]
pub struct EtcdCluster {
    members: Vec<EtcdMember>,
}

/// One member.
#[derive(Debug)]
#[must_use = "dropping it kills the server"]
pub struct EtcdMember {
    process: Process,
    port: u16,
    peer_port: u16,
}

impl EtcdCluster {
    /// Starts one member. A TTL of 2 s is its shortest.
    ///
    /// # Errors
    /// `etcd` is not installed (`integration/setup.sh` installs it), or does not start; the error shows its log.
    pub fn start() -> Result<Self> {
        Self::start_members(1)
    }

    /// Starts a cluster of `count`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_members(count: usize) -> Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::try_start(count) {
                Err(error) if tries < PORTS_TRIED && error.to_string().contains("address already in use") => {}
                started => return started,
            }
        }
    }

    fn try_start(count: usize) -> Result<Self> {
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            let (port, peer_port) = (free_port()?, free_port()?);
            members.push(EtcdMember { process: Process::new("etcd", "etcd")?, port, peer_port });
        }
        let peers: Vec<_> = members
            .iter()
            .enumerate()
            .map(|(at, member)| format!("m{at}=http://127.0.0.1:{}", member.peer_port))
            .collect();
        let peers = peers.join(",");
        // Several members elect more slowly: they share the processors.
        let (heartbeat, election) = if count == 1 { ("10", "50") } else { ("20", "100") };
        for (at, member) in members.iter_mut().enumerate() {
            let (client, peer) =
                (format!("http://127.0.0.1:{}", member.port), format!("http://127.0.0.1:{}", member.peer_port));
            let (name, options) = (
                format!("m{at}"),
                [
                    ("--data-dir", "data"),
                    ("--listen-client-urls", &client),
                    ("--advertise-client-urls", &client),
                    ("--listen-peer-urls", &peer),
                    ("--initial-advertise-peer-urls", &peer),
                    ("--initial-cluster", &peers),
                    ("--heartbeat-interval", heartbeat),
                    ("--election-timeout", election),
                    ("--logger", "zap"),
                    ("--log-level", "error"),
                ],
            );
            let name = [OsString::from("--name"), name.into()];
            let options = options.iter().flat_map(|(option, value)| [OsString::from(option), OsString::from(value)]);
            member.process.set_arguments(name.into_iter().chain(options));
            // A member is healthy only with a majority: do not wait for the first ones.
            member.process.start(START_PATIENCE, || Ok(()))?;
        }
        let cluster = Self { members };
        for member in &cluster.members {
            member.wait_until_healthy()?;
        }
        Ok(cluster)
    }

    /// `etcd://` with all members.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.members.iter().map(|member| member.addr().to_string()).collect();
        format!("etcd://{}/", addresses.join(","))
    }

    /// The members.
    pub fn members(&mut self) -> &mut [EtcdMember] {
        &mut self.members
    }

    /// One member.
    pub fn member(&mut self, at: usize) -> &mut EtcdMember {
        &mut self.members[at]
    }

    /// Which member leads.
    ///
    /// # Errors
    /// No member that answers knows.
    pub fn leader(&mut self) -> Result<usize> {
        let leads = |member: &mut EtcdMember| {
            member.ctl(&["endpoint", "status", "--write-out=json"]).is_ok_and(|output| {
                let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                let status = &status[0]["Status"];
                status["leader"].as_u64().is_some_and(|leader| Some(leader) == status["header"]["member_id"].as_u64())
            })
        };
        let running = |member: &mut EtcdMember| member.process.pid().is_some();
        self.members
            .iter_mut()
            .position(|member| running(member) && leads(member))
            .ok_or_else(|| HarnessError::new("no member leads"))
    }
}

impl EtcdMember {
    /// `etcd://` with this member alone.
    pub fn url(&self) -> String {
        format!("etcd://{}/", self.addr())
    }

    /// Where it listens. The same after a restart.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The folder with its data and log.
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

    /// SIGKILL. What it had answered is on its disk.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again with its data; stops it first if it runs.
    ///
    /// # Errors
    /// It does not stop or does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.process.start(START_PATIENCE, || Ok(()))?;
        self.wait_until_healthy()
    }

    /// Runs `etcdctl` against this member, to its end.
    ///
    /// # Errors
    /// It cannot be started, or fails; the error shows what it said.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        let output = self
            .ctl_command(arguments)
            .output()
            .map_err(|error| HarnessError::caused_by("cannot run etcdctl (integration/setup.sh installs it)", error))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(HarnessError::new(format!("etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))))
    }

    /// `etcdctl` against this member, not started.
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.addr()));
        command.arg("--command-timeout=5s").args(arguments);
        command
    }

    /// All keys that start so.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let output = self.ctl(&["get", "--prefix", "--keys-only", prefix])?;
        let keys = String::from_utf8_lossy(&output.stdout);
        Ok(keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    fn wait_until_healthy(&self) -> Result<()> {
        let end = std::time::Instant::now() + START_PATIENCE;
        loop {
            match self.is_healthy() {
                Ok(()) => return Ok(()),
                Err(why) if std::time::Instant::now() >= end => {
                    let tail = self.process.log_tail();
                    return Err(HarnessError::new(format!("etcd is not healthy: {why}; its log ends:\n{tail}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// What it counts, in the text format of Prometheus.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.http("/metrics").map_err(|error| HarnessError::caused_by("etcd does not show its metrics", error))
    }

    fn http(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.addr(), ASK_PATIENCE)?;
        stream.set_read_timeout(Some(ASK_PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn is_healthy(&self) -> Result<(), String> {
        match self.http("/health") {
            Ok(answer) if answer.contains(r#""health":"true""#) => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(error.to_string()),
        }
    }
}

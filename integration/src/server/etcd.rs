use std::env;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::Process;
use super::free_port;
use super::links::PeerLinks;
use crate::certificates::Certificates;
use crate::{HarnessError, Result};

/// A start takes 0.1 s; a busy machine may take a hundred times as long.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The timeout of the harness's own requests to a running server.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The free memory required for data in memory. Containers often have little.
const MEMORY_ROOM: u64 = 1 << 30;

/// Another test may take a chosen port before the server binds it.
const PORTS_TRIED: usize = 5;

/// A real etcd cluster of one or more members on free loopback ports, in temporary folders.
/// Dropping it kills all members.
#[derive(Debug)]
#[must_use = "dropping it kills the servers"]
pub struct EtcdCluster {
    members: Vec<EtcdMember>,
    links: Option<PeerLinks>,
}

/// Options of a cluster.
#[derive(Debug, Clone)]
#[must_use = "nothing is started yet"]
pub struct EtcdBuilder {
    members: usize,
    in_memory: bool,
    linked: bool,
    later_release: bool,
    options: Vec<(String, String)>,
    certificates: Option<Certificates>,
}

impl EtcdBuilder {
    /// Sets the number of members. The default is 1.
    pub fn members(mut self, count: usize) -> Self {
        self.members = count;
        self
    }

    /// Keeps data in memory, if the machine has a suitable folder with enough space, so that the
    /// cluster does not wait for a disk.
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// Puts relays between the members, so that some can be cut off from the rest.
    pub fn linked(mut self) -> Self {
        self.linked = true;
        self
    }

    /// Uses the later release that `integration/setup.sh` installs, see [`later_etcd`].
    pub fn later_release(mut self) -> Self {
        self.later_release = true;
        self
    }

    /// Sets an option of `etcd`, such as `--auth-token-ttl`.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Accepts only TLS clients with a certificate of the same authority.
    pub fn tls(mut self, certificates: &Certificates) -> Self {
        self.certificates = Some(certificates.clone());
        self
    }

    /// Starts the cluster.
    ///
    /// # Errors
    /// See [`EtcdCluster::start`].
    pub fn start(&self) -> Result<EtcdCluster> {
        let mut tries = 0;
        loop {
            tries += 1;
            match EtcdCluster::try_start(self) {
                Err(error)
                    if tries < PORTS_TRIED
                        && error.to_string().contains("address already in use") => {}
                started => return started,
            }
        }
    }
}

/// One member of a cluster.
#[derive(Debug)]
#[must_use = "dropping it kills the server"]
pub struct EtcdMember {
    process: Process,
    port: u16,
    peer_port: u16,
    /// The port for health checks and metrics, without TLS.
    asked_port: u16,
    certificates: Option<Certificates>,
}

/// A member's own view of its state and cluster.
struct Status {
    member: u64,
    leader: u64,
}

impl EtcdCluster {
    /// Starts a cluster with one member. Its shortest TTL is 2 s.
    ///
    /// # Errors
    /// `etcd` is not installed (`integration/setup.sh` installs it), or does not start; the error
    /// shows its log.
    pub fn start() -> Result<Self> {
        Self::start_members(1)
    }

    /// Starts a cluster of `count` members.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_members(count: usize) -> Result<Self> {
        Self::builder().members(count).start()
    }

    /// Returns a builder for clusters with options.
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder {
            members: 1,
            in_memory: false,
            linked: false,
            later_release: false,
            options: Vec::new(),
            certificates: None,
        }
    }

    fn try_start(builder: &EtcdBuilder) -> Result<Self> {
        let parent = if builder.in_memory {
            memory_folder()
        } else {
            env::temp_dir()
        };
        let program = if builder.later_release {
            later_etcd()?
        } else {
            PathBuf::from("etcd")
        };
        let mut members = Vec::with_capacity(builder.members);
        for _ in 0..builder.members {
            members.push(EtcdMember {
                process: Process::new_in(&parent, "etcd", &program)?,
                port: free_port()?,
                peer_port: free_port()?,
                asked_port: free_port()?,
                certificates: builder.certificates.clone(),
            });
        }
        let peer_ports: Vec<_> = members.iter().map(|member| member.peer_port).collect();
        let links = if builder.linked {
            Some(PeerLinks::start(&peer_ports)?)
        } else {
            None
        };
        let known = |at: usize| {
            let port = links
                .as_ref()
                .map_or(peer_ports[at], |links| links.port(at));
            format!("http://127.0.0.1:{port}")
        };
        let peers: Vec<_> = (0..builder.members)
            .map(|at| format!("m{at}={}", known(at)))
            .collect();
        let peers = peers.join(",");
        for (at, member) in members.iter_mut().enumerate() {
            let arguments = member.arguments(&format!("m{at}"), &known(at), &peers, builder);
            member.process.set_arguments(arguments);
            // A member is healthy only with a majority, so the first ones are not waited for.
            member.process.start(START_TIMEOUT, || Ok(()))?;
        }
        let cluster = Self { members, links };
        for member in &cluster.members {
            member.wait_until_healthy()?;
        }
        if let Some(links) = &cluster.links {
            let ids = cluster
                .members
                .iter()
                .map(|member| Ok(format!("{:x}", member.status()?.member)));
            links.know(ids.collect::<Result<_>>()?);
        }
        Ok(cluster)
    }

    /// Returns the relays between the members of a cluster built with
    /// [`linked`](EtcdBuilder::linked).
    ///
    /// # Errors
    /// The cluster was built without relays.
    pub fn links(&self) -> Result<&PeerLinks> {
        self.links
            .as_ref()
            .ok_or_else(|| HarnessError::new("the cluster was not built with links"))
    }

    /// Returns the `etcd://` URL of all members.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self
            .members
            .iter()
            .map(|member| member.addr().to_string())
            .collect();
        format!("etcd://{}/", addresses.join(","))
    }

    /// Returns all members.
    pub fn members(&mut self) -> &mut [EtcdMember] {
        &mut self.members
    }

    /// Returns one member, for requests.
    pub fn at(&self, at: usize) -> &EtcdMember {
        &self.members[at]
    }

    /// Returns one member, to control it.
    pub fn member(&mut self, at: usize) -> &mut EtcdMember {
        &mut self.members[at]
    }

    /// Returns the index of the leader.
    ///
    /// # Errors
    /// No member that answers knows the leader.
    pub fn leader(&mut self) -> Result<usize> {
        let leads = |member: &mut EtcdMember| {
            member
                .status()
                .is_ok_and(|status| status.leader == status.member)
        };
        let running = |member: &mut EtcdMember| member.process.pid().is_some();
        self.members
            .iter_mut()
            .position(|member| running(member) && leads(member))
            .ok_or_else(|| HarnessError::new("no member is the leader"))
    }
}

impl EtcdMember {
    fn arguments(
        &self,
        name: &str,
        known_as: &str,
        peers: &str,
        builder: &EtcdBuilder,
    ) -> Vec<OsString> {
        let scheme = if self.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        let client = format!("{scheme}://127.0.0.1:{}", self.port);
        // Several members share the processors. Longer timeouts keep the leader from being deposed
        // on a busy machine.
        let (heartbeat, election) = if builder.members == 1 {
            ("10", "50")
        } else {
            ("30", "250")
        };
        let mut options: Vec<(&str, OsString)> = vec![
            ("--name", name.into()),
            ("--data-dir", "data".into()),
            ("--listen-client-urls", client.clone().into()),
            ("--advertise-client-urls", client.into()),
            (
                "--listen-peer-urls",
                format!("http://127.0.0.1:{}", self.peer_port).into(),
            ),
            ("--initial-advertise-peer-urls", known_as.into()),
            (
                "--listen-metrics-urls",
                format!("http://127.0.0.1:{}", self.asked_port).into(),
            ),
            ("--initial-cluster", peers.into()),
            ("--heartbeat-interval", heartbeat.into()),
            ("--election-timeout", election.into()),
            ("--logger", "zap".into()),
            ("--log-level", "error".into()),
        ];
        if let Some(certificates) = &self.certificates {
            options.extend([
                ("--cert-file", certificates.certificate().into()),
                ("--key-file", certificates.key().into()),
                ("--trusted-ca-file", certificates.ca().into()),
            ]);
        }
        let mut arguments: Vec<OsString> = options
            .into_iter()
            .flat_map(|(option, value)| [option.into(), value])
            .collect();
        if self.certificates.is_some() {
            arguments.push("--client-cert-auth".into());
        }
        arguments.extend(
            builder
                .options
                .iter()
                .flat_map(|(option, value)| [option.into(), value.into()]),
        );
        arguments
    }

    fn status(&self) -> Result<Status> {
        let output = self.ctl(&["endpoint", "status", "--write-out=json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let status = &status[0]["Status"];
        match (
            status["header"]["member_id"].as_u64(),
            status["leader"].as_u64(),
        ) {
            (Some(member), Some(leader)) => Ok(Status { member, leader }),
            _ => Err(HarnessError::new(format!(
                "unexpected output of etcdctl: {status}"
            ))),
        }
    }

    /// Returns the release of the member, such as `3.4.23`.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn version(&self) -> Result<String> {
        let output = self.ctl(&["endpoint", "status", "--write-out=json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let version = status[0]["Status"]["version"].as_str().map(str::to_owned);
        version.ok_or_else(|| HarnessError::new(format!("unexpected output of etcdctl: {status}")))
    }

    /// Returns the `etcd://` URL of this member alone.
    pub fn url(&self) -> String {
        format!("etcd://{}/", self.addr())
    }

    /// Returns the client address. It stays the same after a restart.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the folder with data and log.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Returns the process id while the member is running or paused.
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

    /// Sends SIGKILL. Everything that was answered is on disk.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the member again with its data, stopping it first if it is running.
    ///
    /// # Errors
    /// The member does not stop or does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.process.start(START_TIMEOUT, || Ok(()))?;
        self.wait_until_healthy()
    }

    /// Restarts the member with its data as the later release ([`later_etcd`]) or as the system's.
    ///
    /// # Errors
    /// The later release is not installed; the member does not stop or does not start.
    pub fn restart_as(&mut self, later_release: bool) -> Result<()> {
        self.process.set_program(if later_release {
            later_etcd()?
        } else {
            PathBuf::from("etcd")
        });
        self.restart()
    }

    /// Runs `etcdctl` against this member and waits for its end.
    ///
    /// # Errors
    /// The program cannot be started, or fails; the error shows its output.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.ctl_command(arguments).output().map_err(|error| {
            HarnessError::caused_by(
                "cannot run etcdctl (integration/setup.sh installs it)",
                error,
            )
        })?;
        if output.status.success() {
            return Ok(output);
        }
        Err(HarnessError::new(format!(
            "etcdctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )))
    }

    /// Returns an `etcdctl` command for this member that is not started yet.
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.addr()));
        if let Some(certificates) = &self.certificates {
            let option = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
            command.arg(option("cacert", certificates.ca()));
            command.args([
                option("cert", certificates.certificate()),
                option("key", certificates.key()),
            ]);
        }
        command.arg("--command-timeout=5s").args(arguments);
        command
    }

    /// Returns all keys with this prefix.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let output = self.ctl(&["get", "--prefix", "--keys-only", prefix])?;
        let keys = String::from_utf8_lossy(&output.stdout);
        Ok(keys
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    }

    fn wait_until_healthy(&self) -> Result<()> {
        let end = std::time::Instant::now() + START_TIMEOUT;
        loop {
            match self.is_healthy() {
                Ok(()) => return Ok(()),
                Err(why) if std::time::Instant::now() >= end => {
                    let tail = self.process.log_tail();
                    return Err(HarnessError::new(format!(
                        "etcd is not healthy: {why}; its log ends:\n{tail}"
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Returns the metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.http("/metrics")
            .map_err(|error| HarnessError::caused_by("cannot read the metrics of etcd", error))
    }

    fn http(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(
            &(Ipv4Addr::LOCALHOST, self.asked_port).into(),
            ASK_TIMEOUT,
        )?;
        stream.set_read_timeout(Some(ASK_TIMEOUT))?;
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

/// Returns the path of an etcd, 3.5.13 or later, in which a deposed leader no longer revokes live
/// leases (etcd issue 15247).
///
/// # Errors
/// `integration/setup.sh` has not installed it.
pub fn later_etcd() -> Result<PathBuf> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/etcd-later/usr/bin/etcd");
    if program.exists() {
        return Ok(program);
    }
    Err(HarnessError::new(format!(
        "{} is not there: run integration/setup.sh, which installs it",
        program.display()
    )))
}

/// Returns Linux's in-memory folder, or the default one for temporary files.
fn memory_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let room = rustix::fs::statvfs(&memory).map(|system| system.f_bavail * system.f_frsize);
    if room.is_ok_and(|room| room >= MEMORY_ROOM) {
        memory
    } else {
        env::temp_dir()
    }
}

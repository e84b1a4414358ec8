//! [`Foreign`]: a lock client in another language.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{HarnessError, Result, peer::Peer};
#[cfg(feature = "zookeeper")]
use crate::{
    child::find_program,
    server::{classpath, jvm},
};

/// The jars of Curator and its dependencies, as Debian names them.
#[cfg(feature = "zookeeper")]
const CURATOR: [&str; 6] = [
    "curator-recipes",
    "curator-framework",
    "curator-client",
    "zookeeper",
    "guava",
    "slf4j-nop",
];

/// The timeout of operations that must succeed.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A program of `integration/interop` that uses another project's lock client for one lock.
/// Dropping it kills the program.
#[derive(Debug)]
pub struct Foreign(Peer);

impl Foreign {
    /// Starts a program with redis-py's `Lock`.
    ///
    /// # Errors
    /// The client is not installed, or cannot reach the server.
    pub async fn redis_py(url: &str, name: &str, ttl: Duration) -> Result<Self> {
        let script = sources().join("python/redis_lock.py");
        let arguments = [
            script.into(),
            url.into(),
            name.into(),
            ttl.as_secs_f64().to_string().into(),
        ];
        Self::start(installed("python/bin/python")?, arguments.into()).await
    }

    /// Starts a program with node-redlock over the Redis servers on these ports.
    ///
    /// # Errors
    /// The client is not installed.
    pub async fn node_redlock(ports: &[u16], name: &str, ttl: Duration) -> Result<Self> {
        let script = sources().join("node/redlock.mjs");
        let packages = installed("node/package.json")?
            .parent()
            .map(PathBuf::from)
            .unwrap_or_default();
        let mut arguments: Vec<OsString> = vec![
            script.into(),
            packages.into(),
            name.into(),
            ttl.as_millis().to_string().into(),
        ];
        arguments.extend(ports.iter().map(|port| port.to_string().into()));
        Self::start(installed("node/node")?, arguments).await
    }

    /// Starts a program with Curator's `InterProcessMutex` (`mutex`), or one side of its
    /// `InterProcessReadWriteLock` (`read`, `write`).
    ///
    /// # Errors
    /// The client is not installed, or cannot reach the server.
    #[cfg(feature = "zookeeper")]
    pub async fn curator(server: SocketAddr, kind: &str, path: &str) -> Result<Self> {
        Self::java("CuratorLock", &[&server.to_string(), kind, path]).await
    }

    /// Starts a program with a candidate of Curator's `LeaderLatch` (`latch`) or `LeaderSelector`
    /// (`selector`), which has this id.
    ///
    /// # Errors
    /// The client is not installed, or cannot reach the server.
    #[cfg(feature = "zookeeper")]
    pub async fn curator_election(
        server: SocketAddr,
        kind: &str,
        path: &str,
        id: &str,
    ) -> Result<Self> {
        Self::java("CuratorElection", &[&server.to_string(), kind, path, id]).await
    }

    /// Starts a program in Java.
    #[cfg(feature = "zookeeper")]
    async fn java(class: &str, arguments: &[&str]) -> Result<Self> {
        let classes = installed(&format!("java/{class}.class"))?
            .parent()
            .map(PathBuf::from)
            .unwrap_or_default();
        let classpath = format!("{}:{}", classes.display(), classpath(&CURATOR)?);
        let mut command: Vec<OsString> = jvm().map(OsString::from).into();
        command.extend(["-cp", &classpath, class].map(OsString::from));
        command.extend(arguments.iter().map(OsString::from));
        Self::start(find_program("java")?, command).await
    }

    /// Starts a program with kazoo's `Lock`, configured to respect nodes whose names contain one of
    /// these patterns.
    ///
    /// # Errors
    /// The client is not installed, or cannot reach the server.
    pub async fn kazoo(server: SocketAddr, path: &str, patterns: &[&str]) -> Result<Self> {
        let script = sources().join("python/kazoo_lock.py");
        let mut arguments: Vec<OsString> =
            vec![script.into(), server.to_string().into(), path.into()];
        arguments.extend(patterns.iter().map(OsString::from));
        Self::start(installed("python/bin/python")?, arguments).await
    }

    /// Starts a program with `flock(1)` on this file.
    ///
    /// # Errors
    /// The file does not exist.
    pub async fn flock(file: &Path) -> Result<Self> {
        Self::start(sources().join("shell/flock.sh"), vec![file.into()]).await
    }

    /// Acquires the lock, and waits until it is held.
    ///
    /// # Errors
    /// The lock is not held within 20 s.
    pub async fn lock(&mut self) -> Result<()> {
        self.begin_lock()?;
        self.holds().await
    }

    /// Starts to acquire the lock without waiting; see [`holds`](Self::holds).
    ///
    /// # Errors
    /// The process has ended.
    pub fn begin_lock(&mut self) -> Result<()> {
        self.0.say("lock")
    }

    /// Waits until a lock started by [`begin_lock`](Self::begin_lock) is held.
    ///
    /// # Errors
    /// The lock is not held within 20 s.
    pub async fn holds(&mut self) -> Result<()> {
        match self.hear().await?.as_str() {
            "held" => Ok(()),
            other => Err(HarnessError::new(format!(
                "the other client does not hold the lock: {other}"
            ))),
        }
    }

    /// Tries to acquire the lock without waiting. Returns whether it is held.
    ///
    /// # Errors
    /// The process has ended.
    pub async fn try_lock(&mut self) -> Result<bool> {
        self.0.say("try")?;
        Ok(self.hear().await? == "held")
    }

    /// Releases the lock. Returns whether it was still held.
    ///
    /// # Errors
    /// The process has ended.
    pub async fn release(&mut self) -> Result<bool> {
        self.0.say("release")?;
        Ok(self.hear().await? == "released")
    }

    /// Returns the leader of an election, as the client reads it from the servers.
    ///
    /// # Errors
    /// The process has ended, or the client has no elections.
    pub async fn leader(&mut self) -> Result<String> {
        self.0.say("leader")?;
        let answer = self.hear().await?;
        let leader = answer.strip_prefix("leader ").map(str::to_owned);
        leader
            .ok_or_else(|| HarnessError::new(format!("the other client told no leader: {answer}")))
    }

    /// Starts `program`, which waits for commands.
    async fn start(program: PathBuf, arguments: Vec<OsString>) -> Result<Self> {
        let mut foreign = Self(Peer::spawn(program, arguments)?);
        match foreign.hear().await?.as_str() {
            "ready" => Ok(foreign),
            other => Err(HarnessError::new(format!(
                "the other client is not ready: {other}"
            ))),
        }
    }

    async fn hear(&mut self) -> Result<String> {
        self.0.heard(TIMEOUT).await
    }
}

/// Returns the folder with the sources of the programs.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop")
}

/// Returns the path of a program that `integration/interop/setup.sh` has installed.
fn installed(path: &str) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interop");
    // Node requires an absolute path without `..`; Python finds its packages relative to the path
    // by which it is started.
    let folder = folder.canonicalize().unwrap_or(folder);
    let path = folder.join(path);
    if path.exists() {
        return Ok(path);
    }
    Err(HarnessError::new(format!(
        "{} is not installed: run integration/setup.sh",
        path.display()
    )))
}

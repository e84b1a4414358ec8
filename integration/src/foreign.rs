//! [`Foreign`]: a lock client of another language.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    HarnessError, Result,
    child::find_program,
    peer::Peer,
    server::{classpath, jvm},
};

/// Debian's jars of Curator and what it needs.
const CURATOR: [&str; 6] = [
    "curator-recipes",
    "curator-framework",
    "curator-client",
    "zookeeper",
    "guava",
    "slf4j-nop",
];

/// For what must happen at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program of `integration/interop` with another project's lock client in it, for one lock.
/// Dropping it kills it.
#[derive(Debug)]
pub struct Foreign(Peer);

impl Foreign {
    /// redis-py's `Lock`.
    ///
    /// # Errors
    /// It is not installed, or cannot reach the server.
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

    /// node-redlock over the Redis servers on these ports.
    ///
    /// # Errors
    /// It is not installed.
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

    /// Curator's `InterProcessMutex` (`mutex`), or one side of its `InterProcessReadWriteLock`
    /// (`read`, `write`).
    ///
    /// # Errors
    /// It is not installed, or cannot reach the server.
    pub async fn curator(server: SocketAddr, kind: &str, path: &str) -> Result<Self> {
        let classes = installed("java/CuratorLock.class")?
            .parent()
            .map(PathBuf::from)
            .unwrap_or_default();
        let classpath = format!("{}:{}", classes.display(), classpath(&CURATOR)?);
        let mut arguments: Vec<OsString> = jvm().map(OsString::from).into();
        arguments.extend(
            [
                "-cp",
                &classpath,
                "CuratorLock",
                &server.to_string(),
                kind,
                path,
            ]
            .map(OsString::from),
        );
        Self::start(find_program("java")?, arguments).await
    }

    /// kazoo's `Lock`, which is to respect nodes with these patterns in their names too.
    ///
    /// # Errors
    /// It is not installed, or cannot reach the server.
    pub async fn kazoo(server: SocketAddr, path: &str, patterns: &[&str]) -> Result<Self> {
        let script = sources().join("python/kazoo_lock.py");
        let mut arguments: Vec<OsString> =
            vec![script.into(), server.to_string().into(), path.into()];
        arguments.extend(patterns.iter().map(OsString::from));
        Self::start(installed("python/bin/python")?, arguments).await
    }

    /// `flock(1)` on this file.
    ///
    /// # Errors
    /// The file is not there.
    pub async fn flock(file: &Path) -> Result<Self> {
        Self::start(sources().join("shell/flock.sh"), vec![file.into()]).await
    }

    /// Locks, and waits for it.
    ///
    /// # Errors
    /// It does not hold the lock within 20 s.
    pub async fn lock(&mut self) -> Result<()> {
        self.begin_lock()?;
        self.holds().await
    }

    /// Begins to lock: [`holds`](Self::holds) waits for it.
    ///
    /// # Errors
    /// It has ended.
    pub fn begin_lock(&mut self) -> Result<()> {
        self.0.say("lock")
    }

    /// Waits until it holds what it began to lock.
    ///
    /// # Errors
    /// It does not hold the lock within 20 s.
    pub async fn holds(&mut self) -> Result<()> {
        match self.hear().await?.as_str() {
            "held" => Ok(()),
            other => Err(HarnessError::new(format!(
                "the other client does not hold the lock: {other}"
            ))),
        }
    }

    /// Tries to lock, without waiting. Whether it holds the lock now.
    ///
    /// # Errors
    /// It has ended.
    pub async fn try_lock(&mut self) -> Result<bool> {
        self.0.say("try")?;
        Ok(self.hear().await? == "held")
    }

    /// Releases. Whether the lock was its own until then.
    ///
    /// # Errors
    /// It has ended.
    pub async fn release(&mut self) -> Result<bool> {
        self.0.say("release")?;
        Ok(self.hear().await? == "released")
    }

    /// `program` with these arguments, in which a client waits for orders.
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
        self.0.heard(PATIENCE).await
    }
}

/// The programs that use the clients.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop")
}

/// What `integration/interop/setup.sh` has installed.
fn installed(path: &str) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interop");
    // Node wants an absolute path without `..`; Python finds its packages beside the path that it
    // is started by.
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

//! A real redis-server for each test, with its own port and directory. It ends with the test.

mod monitor;

use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use leasehold_core::{
    FencingToken, LockKey, Ttl,
    backend::{Attempt, Contention, Lease, LockBackend, Request},
    quorum::{QuorumNode, VoteRequirements},
};
use leasehold_integration::{leftovers, server::RedisServer, steps::connected};
use leasehold_redis::{RedisBackend, RedisConfig, redis};
use tempfile::TempDir;

use self::monitor::{Monitor, Scripts};

/// A limit that is longer than any step here on a busy machine, and shorter than the TTLs of locks
/// that must not expire meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// If this variable is set, every test also checks that scripts touch no other keys than they
/// declare. A few tests count connections or commands, and fail under it.
const CHECK_KEYS: &str = "LEASEHOLD_CHECK_KEYS";

/// A running redis-server. Dropping this value kills it.
pub(crate) struct Server {
    child: Option<Child>,
    port: u16,
    arguments: Vec<String>,
    folder: TempDir,
    /// Whether all commands are recorded.
    is_monitored: bool,
    monitor: Option<Monitor>,
}

impl Server {
    /// Starts a server without persistence.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server whose commands are recorded.
    pub(crate) fn monitored() -> Self {
        let server = Self::start_with(&[], true);
        assert!(server.monitor.is_some());
        server
    }

    /// Starts a server with additional arguments.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::start_with(arguments, std::env::var_os(CHECK_KEYS).is_some())
    }

    fn start_with(arguments: &[&str], is_monitored: bool) -> Self {
        let mut server = Self {
            child: None,
            port: leasehold_testkit::free_port().unwrap(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            folder: tempfile::tempdir().unwrap(),
            is_monitored,
            monitor: None,
        };
        server.restart();
        server
    }

    /// Kills the server if it runs, and starts it again with the same port and directory.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let log = File::create(self.folder.path().join("log")).unwrap();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
            ])
            .arg(self.folder.path())
            .args([
                "--unixsocket",
                &self.socket().to_string_lossy(),
                "--unixsocketperm",
                "700",
            ])
            .args(&self.arguments)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!(
                "redis-server cannot be started ({error}): run `apt-get install redis-server` or integration/setup.sh"
            )
        }));
        let deadline = Instant::now() + Duration::from_secs(10);
        // The server logs this line when all sockets, including TLS, are open and the data is
        // loaded.
        while !self.log().contains("Ready to accept connections") {
            assert!(
                Instant::now() < deadline,
                "redis-server did not start: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.is_monitored {
            let record = monitor::record_in(self.folder.path());
            self.monitor = Monitor::start(&self.socket(), &record);
        }
    }

    /// Returns the scripts that were loaded and run, and checks that they touched no other keys
    /// than they declare.
    pub(crate) fn scripts(&self) -> Scripts {
        Scripts::read(&monitor::record_in(self.folder.path()))
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends the server a signal, such as `STOP` or `CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(
            Command::new("kill")
                .args([&format!("-{signal}"), &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Connects a new backend. To the server, each backend is another process.
    pub(crate) async fn backend(&self) -> Arc<RedisBackend> {
        let url = self.url();
        connected(|| RedisBackend::connect(&url)).await.unwrap()
    }

    /// Connects a backend whose waiters depend on pushed notifications.
    pub(crate) async fn pushed(&self) -> Arc<RedisBackend> {
        let client = redis::Client::open(self.url()).unwrap();
        let config = RedisConfig::new().with_fallback_poll_interval(Duration::from_secs(3600));
        RedisBackend::from_client(&client, config).await.unwrap()
    }

    /// Opens a plain connection, as another program does.
    pub(crate) async fn raw(&self) -> redis::aio::MultiplexedConnection {
        // The driver's own limits are a second and half of one.
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let client = redis::Client::open(self.url()).unwrap();
        let connected = client.get_multiplexed_async_connection_with_config(&patient);
        connected.await.unwrap()
    }

    /// Returns all keys except token counters.
    pub(crate) async fn leftovers(&self) -> Vec<String> {
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut self.raw().await)
            .await
            .unwrap();
        keys.into_iter()
            .filter(|key| !key.ends_with(":token"))
            .collect()
    }

    /// Returns all commands in the append-only file: those that changed something, in their order.
    pub(crate) fn commands(&self) -> Vec<Vec<Vec<u8>>> {
        let parts = self.folder.path().join("appendonlydir");
        let mut files: Vec<_> = match std::fs::read_dir(&parts) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            // Before Redis 7.0 it is one file.
            Err(_) => vec![self.folder.path().join("appendonly.aof")],
        };
        files.retain(|path| path.extension().is_some_and(|end| end == "aof"));
        files.sort();
        let mut commands = Vec::new();
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let mut rest = bytes.as_slice();
            // The base may be a snapshot, which is empty here.
            while rest.first() == Some(&b'*') {
                let mut line = |mark: u8| {
                    let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
                    assert_eq!(rest[0], mark);
                    let number = std::str::from_utf8(&rest[1..end - 1]).unwrap();
                    let number: usize = number.parse().unwrap();
                    rest = &rest[end + 1..];
                    let word = rest.get(..number).map(<[u8]>::to_vec);
                    if mark == b'$' {
                        rest = &rest[number + 2..];
                    }
                    (number, word)
                };
                let (words, _) = line(b'*');
                let words = (0..words).map(|_| line(b'$').1.unwrap());
                commands.push(words.collect());
            }
        }
        commands
    }

    /// Returns a section of `INFO`.
    pub(crate) async fn info(&self, section: &str) -> String {
        redis::cmd("INFO")
            .arg(section)
            .query_async(&mut self.raw().await)
            .await
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if self.monitor.is_some() && !std::thread::panicking() {
            self.scripts();
        }
    }
}

pub(crate) fn key(name: &str) -> LockKey {
    LockKey::new(name).unwrap()
}

pub(crate) fn request(name: &str) -> Request {
    Request::new(key(name))
}

pub(crate) fn ttl(millis: u64) -> Ttl {
    Ttl::from_millis(millis).unwrap()
}

/// Makes one attempt, which must be granted.
pub(crate) async fn granted(backend: &Arc<RedisBackend>, request: Request) -> Arc<dyn Lease> {
    granted_to(backend, request, false).await
}

/// Requirements that a node without a marker meets at once.
pub(crate) const TERMS: VoteRequirements = VoteRequirements {
    epoch_required: false,
    largest_ttl: Duration::ZERO,
    token_floor: FencingToken::new(0),
};

/// Makes one attempt. If `node` is set, it is that of a quorum's client.
pub(crate) async fn attempt(backend: &Arc<RedisBackend>, request: Request, node: bool) -> Attempt {
    let backend = Arc::clone(backend);
    if node {
        backend.request_vote(request, TERMS).await
    } else {
        backend.try_acquire(request).await
    }
    .unwrap()
}

/// Makes one attempt, which must be granted. `node` is as for [`attempt`].
pub(crate) async fn granted_to(
    backend: &Arc<RedisBackend>,
    request: Request,
    node: bool,
) -> Arc<dyn Lease> {
    match attempt(backend, request, node).await {
        Attempt::Granted(lease) => lease,
        Attempt::Contended(contention) => panic!("refused: {contention:?}"),
    }
}

/// Makes one attempt, which must be refused. `node` is as for [`attempt`].
pub(crate) async fn refused_to(
    backend: &Arc<RedisBackend>,
    request: Request,
    node: bool,
) -> Contention {
    match attempt(backend, request, node).await {
        Attempt::Granted(lease) => panic!("granted: {lease:?}"),
        Attempt::Contended(contention) => contention,
    }
}

/// Makes one attempt, which must be refused.
pub(crate) async fn refused(backend: &Arc<RedisBackend>, request: Request) -> Contention {
    refused_to(backend, request, false).await
}

pub(crate) fn token(lease: &Arc<dyn Lease>) -> u64 {
    lease.fencing_token().unwrap().get()
}

/// Waits until `check` returns true, for at most 20 s. That is less than the default TTL, 30 s.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    until_within(Duration::from_secs(20), what, check).await;
}

pub(crate) async fn until_within<F: Future<Output = bool>>(
    patience: Duration,
    what: &str,
    check: impl Fn() -> F,
) {
    let deadline = Instant::now() + patience;
    while !check().await {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asserts that within `patience` no lock and no waiter is left on this server.
#[track_caller]
pub(crate) fn nothing_left(server: &RedisServer, patience: Duration) {
    leftovers::nothing_left(patience, || leftovers::redis(server)).unwrap();
}

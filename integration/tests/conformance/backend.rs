//! [`ALL`]: the backends and their servers.

use std::{
    env,
    sync::{Arc, LazyLock},
    time::Duration,
};

use leasehold_core::{
    TestClock, Ttl,
    backend::{BoxFuture, LockBackend},
};
use leasehold_integration::server::{
    EtcdCluster, Persistence, PostgresServer, RedisServer, RedlockServers, ZookeeperServer,
};
use leasehold_local::MemoryBackend;
use leasehold_testkit::{BackendFixture, FixtureFn};
use tokio::sync::OnceCell;

/// A backend under test.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) time: Time,
    /// Creates the fixture of a case.
    pub(crate) fixture: fn() -> BoxFuture<'static, Box<dyn BackendFixture>>,
}

/// All backends.
pub(crate) static ALL: [Backend; 7] = [
    Backend {
        name: "memory",
        time: Time::Paused,
        fixture: || Box::pin(async { memory() }),
    },
    Backend {
        name: "file",
        time: Time::Real,
        fixture: || Box::pin(async { file() }),
    },
    Backend {
        name: "redis",
        time: Time::Real,
        fixture: || Box::pin(async { redis() }),
    },
    Backend {
        name: "redlock",
        time: Time::Real,
        fixture: || Box::pin(redlock()),
    },
    Backend {
        name: "etcd",
        time: Time::Real,
        fixture: || Box::pin(async { etcd() }),
    },
    Backend {
        name: "zookeeper",
        time: Time::Real,
        fixture: || Box::pin(async { zookeeper() }),
    },
    Backend {
        name: "postgres",
        time: Time::Real,
        fixture: || Box::pin(async { postgres() }),
    },
];

/// Creates a memory backend for each case, in simulated time.
fn memory() -> Box<dyn BackendFixture> {
    let clock = Arc::new(TestClock::new());
    let memory = Arc::new(MemoryBackend::with_clock(clock.clone()));
    let opened = move || {
        let memory = Arc::clone(&memory);
        async move { memory as Arc<dyn LockBackend> }
    };
    Box::new(FixtureFn::new(opened).with_clock(clock))
}

fn file() -> Box<dyn BackendFixture> {
    static DIR: LazyLock<tempfile::TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
    Box::new(at(format!("file:{}", DIR.path().display())))
}

fn redis() -> Box<dyn BackendFixture> {
    static SERVER: LazyLock<RedisServer> =
        LazyLock::new(|| RedisServer::start().expect("a Redis server"));
    Box::new(at(
        given("LEASEHOLD_REDIS_URL").unwrap_or_else(|| SERVER.url())
    ))
}

/// Creates a quorum of five servers, provisioned so that they vote on tokens. Each has a longer
/// response timeout than the TTL implies, and twice the usual TTL, so that a busy machine causes no
/// failures.
async fn redlock() -> Box<dyn BackendFixture> {
    static SERVERS: LazyLock<RedlockServers> =
        LazyLock::new(|| RedlockServers::start(5, Persistence::None).expect("Redis servers"));
    static PROVISIONED: OnceCell<()> = OnceCell::const_new();
    if let Some(url) = given("LEASEHOLD_REDLOCK_URL") {
        return Box::new(at(url));
    }
    let provision = || async {
        drop(
            SERVERS
                .provision(Ttl::DEFAULT)
                .await
                .expect("cannot provision the quorum"),
        );
    };
    PROVISIONED.get_or_init(provision).await;
    Box::new(
        at(format!("{}?node-timeout=400ms", SERVERS.url()))
            .with_ttl(Ttl::from_secs(2).expect("a TTL")),
    )
}

/// Creates a fixture on etcd. Its shortest TTL is 2 s, and a lease may last a second longer than
/// its TTL.
fn etcd() -> Box<dyn BackendFixture> {
    static SERVER: LazyLock<EtcdCluster> =
        LazyLock::new(|| EtcdCluster::start().expect("an etcd server"));
    let fixture = at(given("LEASEHOLD_ETCD_URL").unwrap_or_else(|| SERVER.url()));
    Box::new(
        fixture
            .with_ttl(Ttl::from_secs(2).expect("a TTL"))
            .with_slack(Duration::from_millis(2_500)),
    )
}

/// Creates a fixture on ZooKeeper. Its shortest session timeout is 2 s, and sessions end at a tick.
fn zookeeper() -> Box<dyn BackendFixture> {
    static SERVER: LazyLock<ZookeeperServer> =
        LazyLock::new(|| ZookeeperServer::start().expect("a ZooKeeper server"));
    let started = || format!("{}/conformance?tick=500ms", SERVER.url());
    let fixture = at(given("LEASEHOLD_ZOOKEEPER_URL").unwrap_or_else(started));
    Box::new(
        fixture
            .with_ttl(Ttl::from_secs(2).expect("a TTL"))
            .with_slack(Duration::from_millis(2_500)),
    )
}

/// Creates a fixture on PostgreSQL with twice the usual TTL, because each handle opens several
/// connections, and each connection costs the server a process.
fn postgres() -> Box<dyn BackendFixture> {
    static SERVER: LazyLock<PostgresServer> = LazyLock::new(|| {
        PostgresServer::builder()
            .setting("max_connections", "500")
            .start()
            .expect("a PostgreSQL server")
    });
    let fixture = at(given("LEASEHOLD_POSTGRES_URL").unwrap_or_else(|| SERVER.url()));
    Box::new(fixture.with_ttl(Ttl::from_secs(2).expect("a TTL")))
}

/// Creates fixtures at this URL, with a new connection for each "process" of a case.
fn at(url: String) -> FixtureFn {
    FixtureFn::new(move || {
        let url = url.clone();
        async move {
            leasehold::backend::connect(&url)
                .await
                .expect("a connection")
        }
    })
}

/// Returns the URL of an existing server, if the variable names one.
fn given(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|url| !url.is_empty())
}

/// The clock of a case.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time {
    /// Real time, on two workers.
    Real,
    /// Simulated time on one thread, which advances when every task sleeps.
    Paused,
}

impl Time {
    /// Runs a case on its own runtime.
    pub(crate) fn run<T>(self, case: impl Future<Output = T>) -> T {
        let runtime = match self {
            Self::Real => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build(),
            Self::Paused => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build(),
        };
        runtime.expect("a runtime").block_on(case)
    }
}

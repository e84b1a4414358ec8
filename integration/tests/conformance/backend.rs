//! [`ALL`]: the backends, and where their servers come from.

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

/// One backend.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) time: Time,
    /// What a case runs on.
    pub(crate) fixture: fn() -> BoxFuture<'static, Box<dyn BackendFixture>>,
}

/// Every backend.
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

/// A memory of its own for each case, in simulated time.
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

/// Five servers, attested, so that they vote on tokens. Each has longer for its answer than the TTL
/// would give it, and with it twice the usual TTL: a busy machine is no fault of theirs.
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
                .expect("an attested quorum"),
        );
    };
    PROVISIONED.get_or_init(provision).await;
    Box::new(
        at(format!("{}?node-timeout=400ms", SERVERS.url()))
            .with_ttl(Ttl::from_secs(2).expect("a TTL")),
    )
}

/// Its shortest TTL is 2 s, and a lease may live a second longer than its TTL.
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

/// Its sessions live for 2 s at least, and end by the server's tick.
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

/// Twice the usual TTL: each handle opens connections of its own, and each costs the server a
/// process.
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

/// What is behind this URL, connected anew for each "process" of a case.
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

/// Where a server runs already.
fn given(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|url| !url.is_empty())
}

/// The time that cases run in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time {
    /// On two workers.
    Real,
    /// On one thread; it goes on by itself when every task sleeps.
    Paused,
}

impl Time {
    /// Runs a case on a runtime of its own.
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

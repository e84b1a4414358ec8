//! Every backend keeps the whole contract: the suite of `leasehold-testkit`, on real servers.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use leasehold_core::{LockBackend, TestClock, Ttl};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::{EtcdCluster, PostgresServer, SharedRedis, shared_redis};
use leasehold_local::{FileBackend, MemoryBackend};
use leasehold_postgres::PostgresBackend;
use leasehold_redis::RedisBackend;
use leasehold_testkit::{SubjectOf, conformance};

/// A memory of its own for each case, in simulated time.
fn memory() -> SubjectOf {
    let clock = Arc::new(TestClock::new());
    let memory = Arc::new(MemoryBackend::with_clock(clock.clone()));
    SubjectOf::new(move || {
        let memory = Arc::clone(&memory);
        async move { memory as Arc<dyn LockBackend> }
    })
    .with_clock(clock)
}

conformance!(memory, paused, memory());

/// One directory for all cases, opened anew for each "process" of a case.
async fn files() -> Arc<dyn LockBackend> {
    static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
    Arc::new(FileBackend::open(DIR.path()).expect("a directory of ours"))
}

conformance!(files, SubjectOf::new(files));

/// One server for all cases, connected anew for each "process" of a case.
async fn redis() -> Arc<dyn LockBackend> {
    static SERVER: LazyLock<SharedRedis> = LazyLock::new(|| shared_redis().expect("a Redis server"));
    RedisBackend::connect(SERVER.url()).await.expect("a connection")
}

conformance!(redis, SubjectOf::new(redis));

/// One server for all cases, connected anew for each "process" of a case. Its shortest TTL is 2 s, and a lease may live a
/// second longer than its TTL.
fn etcd() -> SubjectOf {
    static SERVER: LazyLock<EtcdCluster> = LazyLock::new(|| EtcdCluster::start().expect("an etcd server"));
    SubjectOf::new(|| async {
        EtcdBackend::connect(&SERVER.url()).await.expect("a connection") as Arc<dyn LockBackend>
    })
    .with_ttl(Ttl::from_secs(2).expect("a TTL"))
    .with_slack(Duration::from_millis(2_500))
}

conformance!(etcd, etcd());

/// One server for all cases, connected anew for each "process" of a case.
async fn postgres() -> Arc<dyn LockBackend> {
    static SERVER: LazyLock<PostgresServer> = LazyLock::new(|| {
        PostgresServer::builder().setting("max_connections", "500").start().expect("a PostgreSQL server")
    });
    PostgresBackend::connect(&SERVER.url()).await.expect("a connection")
}

// Twice the usual TTL: each handle opens connections of its own, and each costs the server a process.
conformance!(postgres, SubjectOf::new(postgres).with_ttl(Ttl::from_secs(2).expect("a TTL")));

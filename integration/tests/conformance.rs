//! Every backend keeps the whole contract: the suite of `leasehold-testkit`, on real servers.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use leasehold_core::{LockBackend, TestClock, Ttl};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::{EtcdCluster, Persistence, RedlockServers, SharedRedis, shared_redis};
use leasehold_local::{FileBackend, MemoryBackend};
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

/// Five servers for all cases, connected anew for each "process" of a case.
async fn redlock() -> Arc<dyn LockBackend> {
    static SERVERS: LazyLock<RedlockServers> =
        LazyLock::new(|| RedlockServers::start(5, Persistence::None).expect("Redis servers"));
    static PROVISIONED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let provision = || async { drop(SERVERS.provision(Ttl::DEFAULT).await.expect("an attested quorum")) };
    PROVISIONED.get_or_init(provision).await;
    leasehold_redis::redlock(&SERVERS.url()).await.expect("a connection")
}

conformance!(redlock, SubjectOf::new(redlock));

/// One server for all cases, connected anew for each "process" of a case. Its shortest TTL is 2 s, and a lease may live a
/// second longer than its TTL.
fn etcd() -> SubjectOf {
    static SERVER: LazyLock<EtcdCluster> = LazyLock::new(|| EtcdCluster::start().expect("an etcd server"));
    SubjectOf::new(|| async {
        EtcdBackend::connect(&SERVER.url()).await.expect("a connection") as Arc<dyn LockBackend>
    })
    .with_ttl(Ttl::from_secs(2).expect("a TTL"))
    .with_slack(Duration::from_millis(2_500))
    // A future that is never polled again is how a crash is acted here; the session that it waits in lives on, as its
    // process does. What a death leaves is tested on sessions that end, in `etcd_faults.rs`.
    .without("crash_at_any_point_frees_after_ttl", "a session lives as long as its process, which lives on here")
}

conformance!(etcd, etcd());

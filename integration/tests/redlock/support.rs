//! Helpers shared by the tests.

use std::time::{Duration, Instant};

use leasehold_core::{Error, ErrorKind, LockClient, LockGuard, Ttl};
use leasehold_integration::{
    leftovers,
    proxy::Proxy,
    server::{Persistence, RedisServer, RedlockServers},
};

/// The timeout of operations that must succeed, long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The TTL of locks whose expiry no test waits for.
pub(crate) const TTL: Duration = Duration::from_secs(60);
/// The limit for a release to take effect, far below the TTL, so that an expiry cannot be mistaken
/// for it.
const GIVEN_BACK: Duration = Duration::from_secs(15);
/// Options with which a busy machine is not mistaken for a failed server.
pub(crate) const PATIENT: &str = "?node-timeout=10s&timeout=10s&connect-timeout=10s";

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn ttl(duration: Duration) -> Ttl {
    Ttl::new(duration).unwrap()
}

/// Starts five provisioned servers.
pub(crate) async fn five(persistence: Persistence) -> RedlockServers {
    let servers = RedlockServers::start(5, persistence).unwrap();
    servers.provision(ttl(TTL)).await.unwrap();
    servers
}

/// Creates a client with these options.
pub(crate) async fn client(servers: &RedlockServers, options: &str) -> LockClient {
    client_at(&format!("{}{options}", servers.url())).await
}

pub(crate) async fn client_at(url: &str) -> LockClient {
    LockClient::builder(leasehold::backend::connect(url).await.unwrap())
        .with_ttl(ttl(TTL))
        .build()
}

/// Starts a proxy in front of each server.
pub(crate) fn ways(servers: &RedlockServers) -> Vec<Proxy> {
    servers
        .servers
        .iter()
        .map(|server| Proxy::start(server.addr()).unwrap())
        .collect()
}

pub(crate) fn url_through(ways: &[Proxy], options: &str) -> String {
    let hosts: Vec<_> = ways.iter().map(|way| way.addr().to_string()).collect();
    format!("redlock://{}/{options}", hosts.join(","))
}

pub(crate) fn token(guard: &LockGuard) -> u64 {
    guard
        .fencing_token()
        .expect("a quorum of Redis has tokens")
        .get()
}

/// Returns the value of a key, without a proxy.
pub(crate) fn value(server: &RedisServer, key: &str) -> Option<String> {
    redis::cmd("GET")
        .arg(key)
        .query(&mut server.connection().unwrap())
        .unwrap()
}

/// Waits until `reached`.
#[track_caller]
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(millis(5));
    }
}

/// Retries until the lock is granted.
pub(crate) async fn eventually(client: &LockClient, key: &str) -> LockGuard {
    let end = Instant::now() + PATIENCE;
    let mut last: Option<Error> = None;
    while Instant::now() < end {
        match client.mutex(key).try_lock().await {
            Ok(Some(guard)) => return guard,
            Ok(None) => last = None,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(millis(20)).await;
    }
    panic!("not granted within {PATIENCE:?}: {last:?}");
}

/// Tries once, and asserts that the lock is held by another client or that too few servers vote.
pub(crate) async fn not_granted(client: &LockClient, key: &str) {
    match client.mutex(key).try_lock().await {
        Ok(guard) => assert!(guard.is_none(), "two clients hold the lock"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
    }
}

/// Waits until no lock and no waiter is left on any of these servers.
#[track_caller]
pub(crate) fn nothing_left<'a>(servers: impl IntoIterator<Item = &'a RedisServer>) {
    for server in servers {
        leftovers::nothing_left(GIVEN_BACK, || leftovers::redis(server)).unwrap();
    }
}

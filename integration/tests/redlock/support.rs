//! What the tests share.

use std::time::{Duration, Instant};

use leasehold_core::{Error, ErrorKind, LockClient, LockGuard, Ttl};
use leasehold_integration::{
    leftovers,
    proxy::Proxy,
    server::{Persistence, RedisServer, RedlockServers},
};

/// For what must happen at all, on a machine that builds something else beside.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Of locks whose expiry no test waits for.
pub(crate) const TTL: Duration = Duration::from_secs(60);
/// Within which what is given back is gone, far below the TTL: it does not merely expire.
const GIVEN_BACK: Duration = Duration::from_secs(15);
/// Options with which a busy machine does not look like a silent server.
pub(crate) const PATIENT: &str = "?node-timeout=10s&timeout=10s&connect-timeout=10s";

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn ttl(duration: Duration) -> Ttl {
    Ttl::new(duration).unwrap()
}

/// Five attested servers.
pub(crate) async fn five(persistence: Persistence) -> RedlockServers {
    let servers = RedlockServers::start(5, persistence).unwrap();
    servers.provision(ttl(TTL)).await.unwrap();
    servers
}

/// A client with these options.
pub(crate) async fn client(servers: &RedlockServers, options: &str) -> LockClient {
    client_at(&format!("{}{options}", servers.url())).await
}

pub(crate) async fn client_at(url: &str) -> LockClient {
    LockClient::builder(leasehold::backend::connect(url).await.unwrap())
        .with_ttl(ttl(TTL))
        .build()
}

/// A way of one client to each server.
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

/// The value of a key, past any proxy.
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

/// Tries until granted.
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

/// Tries once: another holds the lock, or too few servers vote.
pub(crate) async fn not_granted(client: &LockClient, key: &str) {
    match client.mutex(key).try_lock().await {
        Ok(guard) => assert!(guard.is_none(), "two hold"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
    }
}

/// No lock and no waiter is left on any of these servers.
#[track_caller]
pub(crate) fn nothing_left<'a>(servers: impl IntoIterator<Item = &'a RedisServer>) {
    for server in servers {
        leftovers::nothing_left(GIVEN_BACK, || leftovers::redis(server)).unwrap();
    }
}

//! [`ALL`]: the backends and their servers.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use leasehold_core::{Ttl, quorum::Provision};
use leasehold_integration::{
    Result, leftovers,
    proxy::Proxy,
    server::{
        EtcdCluster, Persistence, PostgresServer, RedisServer, RedlockServers, ZookeeperServer,
    },
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::fixture::{Backend, Fixture, Lease, Need, Route};

const SHORT: u64 = 3_000;
const LONG: u64 = 3_600_000;

const NO_SERVER: &str = "lock files have no server";
const NO_EXPIRY: &str = "a lock file is locked until its holder releases it or ends";
const AFTER_ITS_TTL: &str = "the servers do not see the death of a process";
const AT_ONCE: &str = "the kernel or the server sees the death of a process";

/// All backends with faults. The locks of memory live and die with their process.
pub(crate) static ALL: [Backend; 6] = [
    Backend {
        name: "file",
        start: |lease| Box::new(Files::start(lease)),
        lacks: &[
            (Need::Server, NO_SERVER),
            (Need::Expiry, NO_EXPIRY),
            (Need::HeldAfterDeath, AT_ONCE),
            (
                Need::SkipsStopped,
                "the kernel may lock a file for a waiter that is stopped",
            ),
        ],
    },
    Backend {
        name: "redis",
        start: |lease| Box::new(Redis::start(lease)),
        lacks: &[(Need::FreeAtDeath, AFTER_ITS_TTL)],
    },
    Backend {
        name: "redlock",
        start: |lease| Box::new(Redlock::start(lease)),
        lacks: &[
            (Need::FreeAtDeath, AFTER_ITS_TTL),
            (
                Need::HeldOverRestart,
                "a restarted server votes again only after the largest TTL",
            ),
        ],
    },
    Backend {
        name: "etcd",
        start: |lease| Box::new(Etcd::start(lease)),
        lacks: &[(Need::FreeAtDeath, AFTER_ITS_TTL)],
    },
    Backend {
        name: "zookeeper",
        start: |lease| Box::new(Zookeeper::start(lease)),
        lacks: &[
            (Need::FreeAtDeath, AFTER_ITS_TTL),
            (
                Need::EndsTasks,
                "the driver tries to connect until the session ends",
            ),
        ],
    },
    Backend {
        name: "postgres",
        start: |lease| Box::new(Postgres::start(lease)),
        lacks: &[
            (Need::HeldAfterDeath, AT_ONCE),
            (
                Need::HeldOverReset,
                "the server frees the locks of a connection that is reset",
            ),
            (
                Need::HeldOverRestart,
                "the sessions that hold the locks end with the server",
            ),
        ],
    },
];

fn ttl(lease: Lease) -> Ttl {
    Ttl::from_millis(match lease {
        Lease::Short => SHORT,
        Lease::Long => LONG,
    })
    .unwrap()
}

/// Returns options with which a busy machine is not mistaken for a failed server. Short leases need
/// the default time-outs.
fn patience(lease: Lease) -> &'static str {
    match lease {
        Lease::Short => "timeout=1s",
        Lease::Long => "timeout=4s&connect-timeout=4s",
    }
}

/// Starts a proxy in front of each server.
fn route(servers: &[SocketAddr], url: impl Fn(&[SocketAddr]) -> String) -> Route {
    let proxies: Vec<_> = servers
        .iter()
        .map(|addr| Proxy::start(*addr).unwrap())
        .collect();
    let addresses: Vec<_> = proxies.iter().map(Proxy::addr).collect();
    Route {
        url: url(&addresses),
        proxies,
    }
}

struct Files {
    lease: Lease,
    folder: TempDir,
}

impl Files {
    fn start(lease: Lease) -> Self {
        Self {
            lease,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn locks(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

impl Fixture for Files {
    fn url(&self) -> String {
        format!("file:{}", self.locks().display())
    }

    fn ttl(&self) -> Ttl {
        ttl(self.lease)
    }

    fn pause(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn resume(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn kill(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn restart(&mut self) {
        panic!("{NO_SERVER}");
    }

    fn route(&self) -> Route {
        panic!("{NO_SERVER}");
    }

    fn leftovers(&self) -> Result<BTreeSet<String>> {
        leftovers::files(&self.locks())
    }
}

/// A server that keeps every write.
struct Redis {
    lease: Lease,
    server: RedisServer,
}

impl Redis {
    fn start(lease: Lease) -> Self {
        let builder = RedisServer::builder().persistence(Persistence::EveryWrite);
        Self {
            lease,
            server: builder.start().unwrap(),
        }
    }
}

impl Fixture for Redis {
    fn url(&self) -> String {
        format!("{}?{}", self.server.url(), patience(self.lease))
    }

    fn ttl(&self) -> Ttl {
        ttl(self.lease)
    }

    fn pause(&mut self) {
        self.server.pause().unwrap();
    }

    fn resume(&mut self) {
        self.server.resume().unwrap();
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    fn restart(&mut self) {
        self.server.restart().unwrap();
    }

    fn route(&self) -> Route {
        route(&[self.server.addr()], |at| {
            format!("{}?{}", self.server.url_at(at[0]), patience(self.lease))
        })
    }

    fn leftovers(&self) -> Result<BTreeSet<String>> {
        leftovers::redis(&self.server)
    }
}

/// Three durable servers, which fail all at once.
struct Redlock {
    lease: Lease,
    servers: RedlockServers,
}

impl Redlock {
    /// The longest TTL of a lock in a case with short leases. Restarted servers vote again when it
    /// has passed.
    const LARGEST_TTL: u64 = 2 * SHORT;

    fn start(lease: Lease) -> Self {
        let servers = RedlockServers::start(3, Persistence::EveryWrite).unwrap();
        let largest = match lease {
            Lease::Short => Ttl::from_millis(Self::LARGEST_TTL).unwrap(),
            Lease::Long => ttl(lease),
        };
        let provision = Provision::new(largest)
            .with_never_used(true)
            .with_durable(true);
        let provisioned = async {
            let quorum = leasehold_redis::redlock(&format!("{}?timeout=10s", servers.url()))
                .await
                .unwrap();
            quorum.provision(&provision).await.unwrap();
        };
        Runtime::new().unwrap().block_on(provisioned);
        Self { lease, servers }
    }

    fn at(addresses: &[SocketAddr]) -> String {
        let hosts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        // A busy machine is not mistaken for a server that has failed.
        format!("redlock://{}/?node-timeout=1s", hosts.join(","))
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.servers.iter().map(RedisServer::addr).collect()
    }
}

impl Fixture for Redlock {
    fn url(&self) -> String {
        Self::at(&self.addresses())
    }

    fn ttl(&self) -> Ttl {
        ttl(self.lease)
    }

    fn pause(&mut self) {
        self.servers
            .servers
            .iter_mut()
            .for_each(|server| server.pause().unwrap());
    }

    fn resume(&mut self) {
        self.servers
            .servers
            .iter_mut()
            .for_each(|server| server.resume().unwrap());
    }

    fn kill(&mut self) {
        self.servers.servers.iter_mut().for_each(RedisServer::kill);
    }

    fn restart(&mut self) {
        self.servers
            .servers
            .iter_mut()
            .for_each(|server| server.restart().unwrap());
    }

    fn route(&self) -> Route {
        route(&self.addresses(), Self::at)
    }

    fn leftovers(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for server in &self.servers.servers {
            all.extend(leftovers::redis(server)?);
        }
        Ok(all)
    }
}

struct Etcd {
    lease: Lease,
    cluster: EtcdCluster,
}

impl Etcd {
    fn start(lease: Lease) -> Self {
        Self {
            lease,
            cluster: EtcdCluster::builder().in_memory().start().unwrap(),
        }
    }
}

impl Fixture for Etcd {
    fn url(&self) -> String {
        self.cluster.url()
    }

    fn ttl(&self) -> Ttl {
        ttl(self.lease)
    }

    fn pause(&mut self) {
        self.cluster.member(0).pause().unwrap();
    }

    fn resume(&mut self) {
        self.cluster.member(0).resume().unwrap();
    }

    fn kill(&mut self) {
        self.cluster.member(0).kill();
    }

    fn restart(&mut self) {
        self.cluster.member(0).restart().unwrap();
    }

    fn route(&self) -> Route {
        route(&[self.cluster.at(0).addr()], |at| {
            format!("etcd://{}/", at[0])
        })
    }

    fn leftovers(&self) -> Result<BTreeSet<String>> {
        leftovers::etcd(self.cluster.at(0))
    }
}

struct Zookeeper {
    lease: Lease,
    server: ZookeeperServer,
}

impl Zookeeper {
    /// The tick of the server, with which the client uses most of its TTL.
    const TICK: &str = "?tick=500ms";

    fn start(lease: Lease) -> Self {
        let builder = ZookeeperServer::builder().setting("maxSessionTimeout", LONG);
        Self {
            lease,
            server: builder.start().unwrap(),
        }
    }
}

impl Fixture for Zookeeper {
    fn url(&self) -> String {
        self.server.url() + Self::TICK
    }

    fn ttl(&self) -> Ttl {
        ttl(self.lease)
    }

    fn pause(&mut self) {
        self.server.pause().unwrap();
    }

    fn resume(&mut self) {
        self.server.resume().unwrap();
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    fn restart(&mut self) {
        self.server.restart().unwrap();
    }

    fn route(&self) -> Route {
        let through = |at: &[SocketAddr]| self.server.url_at(at[0]) + Self::TICK;
        route(&[self.server.addr()], through)
    }

    fn leftovers(&self) -> Result<BTreeSet<String>> {
        leftovers::zookeeper(&self.server)
    }
}

struct Postgres {
    lease: Lease,
    server: PostgresServer,
}

impl Postgres {
    fn start(lease: Lease) -> Self {
        // Each client opens several connections.
        let builder = PostgresServer::builder().setting("max_connections", "300");
        Self {
            lease,
            server: builder.durable().start().unwrap(),
        }
    }
}

impl Fixture for Postgres {
    fn url(&self) -> String {
        self.server.url()
    }

    fn ttl(&self) -> Ttl {
        ttl(self.lease)
    }

    fn pause(&mut self) {
        self.server.pause_all().unwrap();
    }

    fn resume(&mut self) {
        self.server.resume_all().unwrap();
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    fn restart(&mut self) {
        self.server.restart().unwrap();
    }

    fn route(&self) -> Route {
        route(&[self.server.addr()], |at| self.server.url_at(at[0]))
    }

    fn leftovers(&self) -> Result<BTreeSet<String>> {
        leftovers::postgres(&self.server)
    }
}

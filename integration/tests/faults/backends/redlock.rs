use std::{collections::BTreeSet, net::SocketAddr};

use leasehold_core::{Ttl, quorum::Provision};
use leasehold_integration::{
    Result, leftovers,
    server::{Persistence, RedisServer, RedlockServers},
};
use tokio::runtime::Runtime;

use super::{AFTER_ITS_TTL, SHORT, route, ttl};
use crate::fixture::{Backend, Fixture, Lease, Need, Route};

pub(super) const REDLOCK: Backend = Backend {
    name: "redlock",
    start: |lease| Box::new(Redlock::start(lease)),
    lacks: &[
        (Need::FreeAtDeath, AFTER_ITS_TTL),
        (Need::Records, "a quorum keeps no records"),
        (
            Need::HeldOverRestart,
            "a restarted server votes again only after the largest TTL",
        ),
    ],
};

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

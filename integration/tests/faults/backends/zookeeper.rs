use std::{collections::BTreeSet, net::SocketAddr};

use leasehold_core::Ttl;
use leasehold_integration::{Result, leftovers, server::ZookeeperServer};

use super::{AFTER_ITS_TTL, LONG, route, ttl};
use crate::fixture::{Backend, Fixture, Lease, Need, Route};

pub(super) const ZOOKEEPER: Backend = Backend {
    name: "zookeeper",
    start: |lease| Box::new(Zookeeper::start(lease)),
    lacks: &[
        (Need::FreeAtDeath, AFTER_ITS_TTL),
        (
            Need::EndsTasks,
            "the driver tries to connect until the session ends",
        ),
    ],
};

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

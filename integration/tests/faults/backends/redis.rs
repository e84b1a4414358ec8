use std::collections::BTreeSet;

use leasehold_core::Ttl;
use leasehold_integration::{
    Result, leftovers,
    server::{Persistence, RedisServer},
};

use super::{AFTER_ITS_TTL, patience, route, ttl};
use crate::fixture::{Backend, Fixture, Lease, Need, Route};

pub(super) const REDIS: Backend = Backend {
    name: "redis",
    start: |lease| Box::new(Redis::start(lease)),
    lacks: &[(Need::FreeAtDeath, AFTER_ITS_TTL)],
};

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

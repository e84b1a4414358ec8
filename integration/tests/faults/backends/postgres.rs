use std::collections::BTreeSet;

use leasehold_core::Ttl;
use leasehold_integration::{Result, leftovers, server::PostgresServer};

use super::{AT_ONCE, route, ttl};
use crate::fixture::{Backend, Fixture, Lease, Need, Route};

pub(super) const POSTGRES: Backend = Backend {
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
};

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

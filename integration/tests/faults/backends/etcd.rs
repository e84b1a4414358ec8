use std::collections::BTreeSet;

use leasehold_core::Ttl;
use leasehold_integration::{Result, leftovers, server::EtcdCluster};

use super::{AFTER_ITS_TTL, route, ttl};
use crate::fixture::{Backend, Fixture, Lease, Need, Route};

pub(super) const ETCD: Backend = Backend {
    name: "etcd",
    start: |lease| Box::new(Etcd::start(lease)),
    lacks: &[(Need::FreeAtDeath, AFTER_ITS_TTL)],
};

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

use std::{sync::LazyLock, time::Duration};

use leasehold_core::Ttl;
use leasehold_integration::server::EtcdCluster;

use super::{Backend, at, given};

/// etcd's shortest TTL is 2 s, and a lease may last a second longer than its TTL.
pub(super) const ETCD: Backend = Backend {
    name: "etcd",
    simulated_time: false,
    fixture: || {
        static SERVER: LazyLock<EtcdCluster> =
            LazyLock::new(|| EtcdCluster::start().expect("an etcd server"));
        Box::pin(async {
            at(given("LEASEHOLD_ETCD_URL").unwrap_or_else(|| SERVER.url()))
                .with_ttl(Ttl::from_secs(2).expect("a TTL"))
                .with_slack(Duration::from_millis(2_500))
        })
    },
};

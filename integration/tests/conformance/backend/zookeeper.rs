use std::{sync::LazyLock, time::Duration};

use leasehold_core::Ttl;
use leasehold_integration::server::ZookeeperServer;

use super::{Backend, at, given};

/// ZooKeeper's shortest session timeout is 2 s, and sessions end at a tick.
pub(super) const ZOOKEEPER: Backend = Backend {
    name: "zookeeper",
    simulated_time: false,
    fixture: || {
        static SERVER: LazyLock<ZookeeperServer> =
            LazyLock::new(|| ZookeeperServer::start().expect("a ZooKeeper server"));
        let started = || format!("{}/conformance?tick=500ms", SERVER.url());
        Box::pin(async move {
            at(given("LEASEHOLD_ZOOKEEPER_URL").unwrap_or_else(started))
                .with_ttl(Ttl::from_secs(2).expect("a TTL"))
                .with_slack(Duration::from_millis(2_500))
        })
    },
};

use std::sync::LazyLock;

use leasehold_core::Ttl;
use leasehold_integration::server::{Persistence, RedlockServers};
use leasehold_testkit::FixtureFn;
use tokio::sync::OnceCell;

use super::{Backend, at, given};

pub(super) const REDLOCK: Backend = Backend {
    name: "redlock",
    simulated_time: false,
    fixture: || Box::pin(fixture()),
};

/// Creates a quorum of five servers, provisioned so that they vote on tokens. Each has a longer
/// response timeout than the TTL implies, and twice the usual TTL, so that a busy machine causes no
/// failures.
async fn fixture() -> FixtureFn {
    static SERVERS: LazyLock<RedlockServers> =
        LazyLock::new(|| RedlockServers::start(5, Persistence::None).expect("Redis servers"));
    static PROVISIONED: OnceCell<()> = OnceCell::const_new();
    if let Some(url) = given("LEASEHOLD_REDLOCK_URL") {
        return at(url);
    }
    let provision = || async {
        drop(
            SERVERS
                .provision(Ttl::DEFAULT)
                .await
                .expect("cannot provision the quorum"),
        );
    };
    PROVISIONED.get_or_init(provision).await;
    at(format!("{}?node-timeout=400ms", SERVERS.url())).with_ttl(Ttl::from_secs(2).expect("a TTL"))
}

use std::sync::LazyLock;

use leasehold_core::Ttl;
use leasehold_integration::server::PostgresServer;

use super::{Backend, at, given};

/// Six times the usual TTL, because each handle opens several connections, each connection costs
/// the server a process, and the cases of records open many handles while they hold a lock.
pub(super) const POSTGRES: Backend = Backend {
    name: "postgres",
    simulated_time: false,
    fixture: || {
        static SERVER: LazyLock<PostgresServer> = LazyLock::new(|| {
            PostgresServer::builder()
                .setting("max_connections", "500")
                .start()
                .expect("a PostgreSQL server")
        });
        Box::pin(async {
            at(given("LEASEHOLD_POSTGRES_URL").unwrap_or_else(|| SERVER.url()))
                .with_ttl(Ttl::from_secs(6).expect("a TTL"))
        })
    },
};

use std::sync::LazyLock;

use leasehold_integration::server::RedisServer;

use super::{Backend, at, given};

pub(super) const REDIS: Backend = Backend {
    name: "redis",
    simulated_time: false,
    fixture: || {
        static SERVER: LazyLock<RedisServer> =
            LazyLock::new(|| RedisServer::start().expect("a Redis server"));
        Box::pin(async { at(given("LEASEHOLD_REDIS_URL").unwrap_or_else(|| SERVER.url())) })
    },
};

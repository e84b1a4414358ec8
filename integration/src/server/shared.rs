use std::env;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::RedisServer;
use crate::Result;

/// The environment variable with the URL of a Redis server for tests that break nothing.
const URL: &str = "LEASEHOLD_REDIS_URL";

static RUNNING: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());

/// A Redis server used by several tests at a time. Each test uses its own names, and none stops the
/// server or counts its commands.
#[derive(Debug, Clone)]
#[must_use = "the last one that is dropped kills the server"]
pub struct SharedRedis {
    url: String,
    /// `None` for a server that was not started here.
    _server: Option<Arc<RedisServer>>,
}

impl SharedRedis {
    /// Returns the URL.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Returns the Redis server of `LEASEHOLD_REDIS_URL`, or else a server shared by the tests of this
/// process, which the first test starts and the last one stops.
///
/// # Errors
/// The server cannot be started.
pub fn shared_redis() -> Result<SharedRedis> {
    if let Ok(url) = env::var(URL) {
        return Ok(SharedRedis { url, _server: None });
    }
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let server = match running.upgrade() {
        Some(server) => server,
        None => Arc::new(RedisServer::start()?),
    };
    *running = Arc::downgrade(&server);
    Ok(SharedRedis {
        url: server.url(),
        _server: Some(server),
    })
}

use std::env;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::RedisServer;
use crate::Result;

/// Names a Redis that is used where a test needs one and breaks nothing.
const URL: &str = "LEASEHOLD_REDIS_URL";

static RUNNING: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());

/// A Redis that several tests use at a time: each takes names of its own, and none stops it or
/// counts its commands.
#[derive(Debug, Clone)]
#[must_use = "the last one that is dropped kills the server"]
pub struct SharedRedis {
    url: String,
    /// `None` for one that somebody else runs.
    _server: Option<Arc<RedisServer>>,
}

impl SharedRedis {
    /// Where to connect.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// The Redis of `LEASEHOLD_REDIS_URL`; without it one that the tests of this process share, started
/// by the first and gone with the last.
///
/// # Errors
/// It cannot be started.
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

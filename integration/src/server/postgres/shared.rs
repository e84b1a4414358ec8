use std::env;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::PostgresServer;
use crate::Result;

/// Names a PostgreSQL that is used where a test needs one and breaks nothing.
const URL: &str = "LEASEHOLD_POSTGRES_URL";

static RUNNING: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());

/// A PostgreSQL that several tests use at a time: each takes names of its own, and none stops it or
/// counts its sessions.
#[derive(Debug, Clone)]
#[must_use = "the last one that is dropped kills the server"]
pub struct SharedPostgres {
    url: String,
    /// `None` for one that somebody else runs.
    _server: Option<Arc<PostgresServer>>,
}

impl SharedPostgres {
    /// Where to connect.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// The PostgreSQL of `LEASEHOLD_POSTGRES_URL`; without it one that the tests of this process share,
/// started by the first and gone with the last.
///
/// # Errors
/// It cannot be started.
pub fn shared_postgres() -> Result<SharedPostgres> {
    if let Ok(url) = env::var(URL) {
        return Ok(SharedPostgres { url, _server: None });
    }
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let server = match running.upgrade() {
        Some(server) => server,
        None => Arc::new(PostgresServer::start()?),
    };
    *running = Arc::downgrade(&server);
    Ok(SharedPostgres {
        url: server.url(),
        _server: Some(server),
    })
}

use std::env;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::PostgresServer;
use crate::Result;

/// The environment variable with the URL of a PostgreSQL for tests that break nothing.
const URL: &str = "LEASEHOLD_POSTGRES_URL";

static RUNNING: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());

/// A PostgreSQL used by several tests at a time. Each test uses its own names, and none stops the
/// server or counts its sessions.
#[derive(Debug, Clone)]
#[must_use = "the last one that is dropped kills the server"]
pub struct SharedPostgres {
    url: String,
    /// `None` for a server that was not started here.
    _server: Option<Arc<PostgresServer>>,
}

impl SharedPostgres {
    /// Returns the URL.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Returns the PostgreSQL of `LEASEHOLD_POSTGRES_URL`, or else a server shared by the tests of this
/// process, which the first test starts and the last one stops.
///
/// # Errors
/// The server cannot be started.
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

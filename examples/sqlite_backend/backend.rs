//! A complete third-party lock backend. It stores locks in one table of a SQLite file and serves
//! the processes of one host.
//!
//! [`capabilities`](SqliteBackend::capabilities) declares what the backend promises, and
//! `tests/conformance.rs` checks it with the conformance suite. `docs/adding-a-backend.md` explains
//! each step.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold::{
    Capabilities, Deadline, Error, ErrorKind, Fencing, FencingToken, LossDetection, Released,
    Restart, Result, WaiterNotification,
    backend::{
        AtomicDeadline, Attempt, Contention, KeepAlive, Lease, LockBackend, Request, async_trait,
    },
};
use rusqlite::{Connection, OptionalExtension, params_from_iter, types::Value};

const NAME: &str = "sqlite";

/// The interval at which waiters retry, because SQLite sends no notifications.
const POLL: Duration = Duration::from_millis(20);

/// The table of locks. A row is never deleted, so that its token continues to increase. `expires`
/// is in milliseconds of the host's wall clock, or 0 if the lock is free.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS locks
    (name BLOB PRIMARY KEY, owner BLOB, expires INTEGER NOT NULL, token INTEGER NOT NULL) WITHOUT ROWID";

// Each operation is a single statement, which makes it atomic.
const ACQUIRE: &str = "INSERT INTO locks VALUES (?1, ?2, unixepoch('subsec') * 1000 + ?3, 1)
    ON CONFLICT (name) DO UPDATE SET owner = ?2, expires = excluded.expires, token = token + 1
    WHERE expires <= unixepoch('subsec') * 1000 RETURNING token";
const RENEW: &str = "UPDATE locks SET expires = unixepoch('subsec') * 1000 + ?3
    WHERE name = ?1 AND owner = ?2 AND expires > unixepoch('subsec') * 1000 RETURNING token";
const RELEASE: &str = "UPDATE locks SET owner = NULL, expires = 0
    WHERE name = ?1 AND owner = ?2 AND expires > unixepoch('subsec') * 1000 RETURNING token";

/// A backend that stores locks in a SQLite file.
#[derive(Debug)]
pub struct SqliteBackend {
    path: PathBuf,
    connection: Arc<Mutex<Connection>>,
}

impl SqliteBackend {
    /// Opens the file. Creates the file and its table if they do not exist.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Unavailable`] if the file cannot be opened or written.
    pub async fn open(path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let path = path.as_ref().to_owned();
        let opened = blocking({
            let path = path.clone();
            move || {
                let connection = Connection::open(path)?;
                // Waits for other writers, but for less than the shortest TTL.
                connection.busy_timeout(Duration::from_millis(300))?;
                // SQLite may refuse this at once if two processes create the file.
                let mut tries = 0..10;
                while let Err(refused) = connection.pragma_update(None, "journal_mode", "wal") {
                    tries.next().ok_or(refused)?;
                    std::thread::sleep(Duration::from_millis(30));
                }
                connection.execute(TABLE, ())?;
                Ok(connection)
            }
        });
        let connection = opened.await.map_err(|error| error.with_operation("open"))?;
        Ok(Arc::new(Self {
            path,
            connection: Arc::new(Mutex::new(connection)),
        }))
    }

    /// Runs a statement with the request's name, owner and TTL, or as many of them as it has
    /// parameters. Returns the token of the row that it changed, if any.
    async fn execute(
        &self,
        operation: &'static str,
        sql: &'static str,
        request: &Request,
    ) -> Result<Option<FencingToken>> {
        let name = Value::Blob(request.key().as_bytes().to_vec());
        let owner = Value::Blob(request.owner().to_hex().to_vec());
        let ttl = Value::Integer(i64::try_from(request.ttl().as_millis()).unwrap_or(i64::MAX));
        let connection = Arc::clone(&self.connection);
        let executed = blocking(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let mut statement = connection.prepare_cached(sql)?;
            let values = [name, owner, ttl]
                .into_iter()
                .take(statement.parameter_count());
            statement
                .query_row(params_from_iter(values), |row| row.get::<_, i64>(0))
                .optional()
        });
        let token = executed
            .await
            .map_err(|error| error.with_operation(operation))?;
        Ok(token.map(i64::unsigned_abs).map(FencingToken::new))
    }
}

/// Runs blocking work on a thread where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(error_of),
        Err(error) => {
            Err(Error::new(ErrorKind::Indeterminate, "the runtime ends").with_source(error))
        }
    }
}

/// Converts an error of SQLite. A statement that fails is rolled back, so it can be retried.
fn error_of(error: rusqlite::Error) -> Error {
    let message = "the SQLite statement failed; check that the file can be written";
    Error::new(ErrorKind::Unavailable, message)
        .with_backend(NAME)
        .with_source(error)
}

#[async_trait]
impl LockBackend for SqliteBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(NAME);
        capabilities.endpoint = self.to_string();
        capabilities.fencing = Fencing::Durable;
        capabilities.waiter_notification = WaiterNotification::Polled(POLL);
        capabilities.loss_detection = LossDetection::Renewal;
        capabilities.restart = Restart::Keeps;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        // The deadline is counted from before the request is sent.
        let sent = request.now();
        Ok(match self.execute("acquire", ACQUIRE, &request).await? {
            Some(token) => {
                let deadline = AtomicDeadline::new(request.deadline_from(sent));
                Attempt::Granted(Arc::new(SqliteLease {
                    backend: self,
                    request,
                    token,
                    deadline,
                }))
            }
            None => Attempt::Contended(Contention::retry_after(POLL)),
        })
    }
}

impl fmt::Display for SqliteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}:{}", self.path.display())
    }
}

/// The lease of one lock.
#[derive(Debug)]
struct SqliteLease {
    backend: Arc<SqliteBackend>,
    request: Request,
    token: FencingToken,
    deadline: AtomicDeadline,
}

#[async_trait]
impl Lease for SqliteLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        Some(self.token)
    }

    fn valid_until(&self) -> Deadline {
        self.deadline.get()
    }

    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::PerLease
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        let sent = self.request.now();
        let renewed = self.backend.execute("renew", RENEW, &self.request).await?;
        // A reply after the deadline does not revive the lease.
        let in_time = || {
            self.deadline
                .advance(self.request.deadline_from(sent), self.request.now())
        };
        if renewed.is_some() && in_time() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Lost, "the lock has expired"))
        }
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        // A second release finds no row, because the first one has cleared the owner.
        let freed = self
            .backend
            .execute("release", RELEASE, &self.request)
            .await?;
        Ok(if freed.is_some() {
            Released::Freed
        } else {
            Released::AlreadyLost
        })
    }
}

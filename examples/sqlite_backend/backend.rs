//! A lock backend of a third party, whole: one table of a SQLite file, for the processes of one
//! host.
//!
//! What it promises is in [`capabilities`](SqliteBackend::capabilities); that it keeps it,
//! `tests/conformance.rs` shows with the conformance suite. Read it beside
//! `docs/adding-a-backend.md`.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold::{
    AtomicDeadline, Attempt, Capabilities, Contention, Deadline, Error, ErrorKind, Fencing,
    FencingToken, HolderRef, Inspection, KeepAlive, Lease, LockBackend, LockKey, LossDetection,
    Released, Request, Restart, Result, Revocation, RevokeOutcome, WaiterNotification, async_trait,
};
use rusqlite::{Connection, OptionalExtension, params_from_iter, types::Value};

const NAME: &str = "sqlite";

/// SQLite wakes nobody: who waits asks again this often.
const POLL: Duration = Duration::from_millis(20);

/// A row outlives its locks: it keeps the token. `expires` is in milliseconds of the host's wall
/// clock, 0 if free.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS locks
    (name BLOB PRIMARY KEY, owner BLOB, expires INTEGER NOT NULL, token INTEGER NOT NULL) WITHOUT ROWID";

/// Each operation is one statement, and so happens whole or not at all.
const ACQUIRE: &str = "INSERT INTO locks VALUES (?1, ?2, unixepoch('subsec') * 1000 + ?3, 1)
    ON CONFLICT (name) DO UPDATE SET owner = ?2, expires = excluded.expires, token = token + 1
    WHERE expires <= unixepoch('subsec') * 1000 RETURNING token";
const RENEW: &str = "UPDATE locks SET expires = unixepoch('subsec') * 1000 + ?3
    WHERE name = ?1 AND owner = ?2 AND expires > unixepoch('subsec') * 1000 RETURNING token";
const RELEASE: &str = "UPDATE locks SET owner = NULL, expires = 0
    WHERE name = ?1 AND owner = ?2 AND expires > unixepoch('subsec') * 1000 RETURNING token";

/// Locks in a SQLite file.
pub struct SqliteBackend {
    path: PathBuf,
    connection: Arc<Mutex<Connection>>,
}

impl SqliteBackend {
    /// Opens the file, and makes it and its table where they are missing.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if it cannot be opened or written.
    pub async fn open(path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let path = path.as_ref().to_owned();
        let opened = blocking({
            let path = path.clone();
            move || {
                let connection = Connection::open(path)?;
                // Others write too; below the shortest TTL, so that every call ends in time.
                connection.busy_timeout(Duration::from_millis(300))?;
                // Of two that open a new file at once one may be refused at once.
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

    /// Runs a statement on the request's name, owner and TTL, as many of them as it names. It
    /// answers with a token, or with nothing.
    async fn ask(
        &self,
        operation: &'static str,
        sql: &'static str,
        request: &Request,
    ) -> Result<Option<FencingToken>> {
        let name = Value::Blob(request.key().as_bytes().to_vec());
        let owner = Value::Blob(request.owner().to_hex().to_vec());
        let ttl = Value::Integer(i64::try_from(request.ttl().as_millis()).unwrap_or(i64::MAX));
        let connection = Arc::clone(&self.connection);
        let answered = blocking(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let mut statement = connection.prepare_cached(sql)?;
            let values = [name, owner, ttl]
                .into_iter()
                .take(statement.parameter_count());
            statement
                .query_row(params_from_iter(values), |row| row.get::<_, i64>(0))
                .optional()
        });
        let token = answered
            .await
            .map_err(|error| error.with_operation(operation))?;
        Ok(token.map(i64::unsigned_abs).map(FencingToken::new))
    }
}

/// Runs what blocks where it may.
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

/// A statement that fails is rolled back: it had no effect, and may be tried again.
fn error_of(error: rusqlite::Error) -> Error {
    let message = "SQLite refused; see the cause, and whether the file can be written";
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
        self.capabilities().check(request.mode(), request.ttl())?;
        // Before anything is sent: the deadline counts from here.
        let sent = request.now();
        Ok(match self.ask("acquire", ACQUIRE, &request).await? {
            Some(token) => {
                let deadline = AtomicDeadline::new(request.deadline_from(sent));
                Attempt::Granted(Arc::new(SqliteLease {
                    backend: self,
                    request,
                    token,
                    deadline,
                }))
            }
            None => Attempt::Contended(Contention {
                retry_after: Some(POLL),
                ..Contention::default()
            }),
        })
    }

    async fn inspect(&self, _: &LockKey) -> Result<Inspection> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "look into the table `locks`",
        ))
    }

    async fn revoke(&self, _: &HolderRef, _: Revocation) -> Result<RevokeOutcome> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "set `expires` to 0 in the table `locks`",
        ))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl fmt::Display for SqliteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}:{}", self.path.display())
    }
}

impl fmt::Debug for SqliteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBackend")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// One grant.
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
        let renewed = self.backend.ask("renew", RENEW, &self.request).await?;
        // An answer that comes after the deadline revives nothing.
        let in_time = || {
            self.deadline
                .advance(self.request.deadline_from(sent), self.request.now())
        };
        if renewed.is_some() && in_time() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Lost, "it is not ours any more"))
        }
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        // Once told, the row has no owner: asking again finds nothing.
        let freed = self.backend.ask("release", RELEASE, &self.request).await?;
        Ok(if freed.is_some() {
            Released::Freed
        } else {
            Released::AlreadyLost
        })
    }
}

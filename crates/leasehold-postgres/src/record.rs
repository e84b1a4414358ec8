//! [`RecordReader`]: reads and watches the records beside locks. [`WriteJob`]: one write.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use leasehold_core::{
    AcquisitionId, Error, ErrorKind, FencingToken, LockKey, Record, Result,
    backend::{BoxFuture, RecordRead, RecordReading, RecordWrite, support::contained},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqlSafeStr, SqlStr, postgres::PgRow};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    connection::Connector,
    error::{self, ERRORS, NO_SUCH_RELATION, has_code},
    identity::Identity,
    job::AcquisitionKey,
    keys::AdvisoryKey,
    record_table,
    statement::read_record,
    waiters::WaiterRegistry,
};

const READ: &str = "read_record";

/// One write of the record beside a lock that an acquisition holds.
#[derive(Debug)]
pub(crate) struct WriteJob {
    pub(crate) acquisition: AcquisitionKey,
    /// The key of the lock.
    pub(crate) lock: AdvisoryKey,
    /// The name of the lock with its prefix.
    pub(crate) name: Vec<u8>,
    /// The name in errors.
    pub(crate) shown: LockKey,
    pub(crate) owner: AcquisitionId,
    pub(crate) token: Option<FencingToken>,
    pub(crate) label: String,
    pub(crate) write: RecordWrite,
}

/// Reads records on a connection of its own, which it keeps open.
pub(crate) struct RecordReader {
    connector: Arc<Connector>,
    waiters: Arc<WaiterRegistry>,
    connection: Arc<Mutex<Option<PgConnection>>>,
    closed: AtomicBool,
    statement: SqlStr,
}

impl RecordReader {
    pub(crate) fn new(connector: &Arc<Connector>, waiters: &Arc<WaiterRegistry>) -> Self {
        let statement = Arc::<str>::from(read_record(&connector.records));
        Self {
            connector: Arc::clone(connector),
            waiters: Arc::clone(waiters),
            connection: Arc::default(),
            closed: AtomicBool::new(false),
            statement: AssertSqlSafe(statement).into_sql_str(),
        }
    }

    /// Reads the record of a lock.
    pub(crate) async fn read(&self, read: RecordRead) -> Result<RecordReading> {
        if self.closed.load(Ordering::Acquire) {
            return Err(ERRORS.error(ErrorKind::Closed, READ, "the backend was closed"));
        }
        let names = &self.connector.names;
        let lock = names
            .lock(&read.key)
            .map_err(|error| error.with_operation(READ))?;
        let watch = if read.watch {
            self.watch(lock).await
        } else {
            None
        };
        let query = Query {
            statement: self.statement.clone(),
            name: names.name(&read.key),
            lock,
            while_held: read.while_held,
        };
        let answer = self.answer(query).await?;
        let held_by_writer = read.while_held && answer.counts && answer.record.is_some();
        let record = answer
            .record
            .map(|row| row.ok_or_else(|| not_a_record(&read.key, READ)))
            .transpose()?
            .flatten();
        let mut reading = RecordReading::new(record.filter(|_| answer.counts));
        reading.now = read.clock.then_some(answer.now);
        // The server does not notify of the death of a holder.
        let limit = held_by_writer.then_some(self.connector.config.fallback_poll_interval);
        reading.changed = watch.map(|changed| match limit {
            Some(limit) => Box::pin(async move { drop(timeout(limit, changed).await) }),
            None => changed,
        });
        Ok(reading)
    }

    /// Returns the notification of the next change, or `None` while notifications are unavailable.
    async fn watch(&self, lock: AdvisoryKey) -> Option<BoxFuture<'static, ()>> {
        let registration = self.waiters.register(lock.record_key());
        self.waiters
            .listen(self.connector.config.timeout)
            .await
            .ok()?;
        // No notification from here on is missed.
        let generation = registration.generation();
        Some(Box::pin(async move {
            registration.notified_since(generation).await;
        }))
    }

    /// Sends the query in a task of its own. The caller may not be polled for long, and would then
    /// keep all other readers from the connection.
    async fn answer(&self, query: Query) -> Result<Answer> {
        let (connector, slot) = (Arc::clone(&self.connector), Arc::clone(&self.connection));
        let task = tokio::spawn(contained(async move {
            let mut slot = slot.lock().await;
            // A connection that was open may have broken since. A read has no effect, so it is
            // repeated once.
            if let Some(connection) = slot.take() {
                match query.send(&connector, connection).await {
                    Ok((answer, connection)) => {
                        *slot = Some(connection);
                        return answer;
                    }
                    Err(error) => {
                        tracing::debug!(target: "leasehold", %error, "the connection for records ended");
                    }
                }
            }
            let connection = connector.on_driver_thread(READ, open).await?;
            let (answer, connection) = query.send(&connector, connection).await?;
            *slot = Some(connection);
            answer
        }));
        let config = &self.connector.config;
        let limit = config.connect_timeout + 2 * config.timeout;
        match timeout(limit, task).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                let message = "the runtime is shutting down";
                Err(ERRORS.error(ErrorKind::Unavailable, READ, message))
            }
            Err(_elapsed) => {
                Err(self
                    .connector
                    .timed_out(ErrorKind::Unavailable, READ, config.timeout))
            }
        }
    }

    /// Closes the connection.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let limit = self.connector.config.timeout;
        let closing = async {
            if let Some(connection) = self.connection.lock().await.take() {
                drop(connection.close().await);
            }
        };
        drop(timeout(limit, closing).await);
    }
}

/// Opens a connection that reads. If another program locks the table, the server ends a read sooner
/// than the reader gives the connection up, which would leave a session behind that waits.
async fn open(connector: Arc<Connector>) -> Result<PgConnection> {
    let mut connection = connector.connect("leasehold reads", READ).await?;
    let identity = Identity::random();
    connector
        .within(connector.claim(&mut connection, &identity, READ))
        .await??;
    let set = AssertSqlSafe(format!(
        "SELECT set_config('lock_timeout', '{}', false) WHERE {}",
        (connector.config.timeout / 2).as_millis().max(1),
        identity.is_here()
    ));
    connector
        .within(sqlx::raw_sql(set).execute(&mut connection))
        .await?
        .map_err(|error| connector.map_error(error, READ))?;
    Ok(connection)
}

/// One read.
struct Query {
    statement: SqlStr,
    name: Vec<u8>,
    lock: AdvisoryKey,
    while_held: bool,
}

/// The answer to one read.
struct Answer {
    /// The row: `Some(None)` if it is a record that was cleared, and `None` if there is no row.
    record: Option<Row>,
    /// Whether the writer holds the lock, or it is of no interest.
    counts: bool,
    now: SystemTime,
}

/// A row of the table. `None` if it is not a record; then `None` if the record was cleared.
type Row = Option<Option<Record>>;

impl Query {
    /// Sends the query. Fails if the connection can no longer be used.
    async fn send(
        &self,
        connector: &Connector,
        mut connection: PgConnection,
    ) -> Result<(Result<Answer>, PgConnection)> {
        let query = sqlx::query(self.statement.clone())
            .bind(&self.name)
            .bind(self.lock.to_string())
            .bind(self.while_held)
            .bind(self.lock.bits())
            .bind(self.lock.objsubid())
            .bind(self.lock.record_key().bits());
        let limit = connector.config.timeout;
        match timeout(limit, query.fetch_one(&mut connection)).await {
            Ok(Ok(row)) => Ok((Answer::of(connector, &row), connection)),
            Ok(Err(error)) if error::is_over(&error) => Err(connector.map_error(error, READ)),
            Ok(Err(error)) if has_code(&error, NO_SUCH_RELATION) => {
                // No record has been written.
                let answer = self.without_table(connector, &mut connection).await?;
                Ok((answer, connection))
            }
            Ok(Err(error)) => Ok((
                Err(record_table::failed(connector, error, READ)),
                connection,
            )),
            Err(_elapsed) => Err(connector.timed_out(ErrorKind::Unavailable, READ, limit)),
        }
    }

    /// Returns the answer if the table does not exist.
    async fn without_table(
        &self,
        connector: &Connector,
        connection: &mut PgConnection,
    ) -> Result<Result<Answer>> {
        let asked = sqlx::query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8")
            .fetch_one(connection);
        let row = connector
            .within(asked)
            .await?
            .map_err(|error| connector.map_error(error, READ))?;
        Ok(connector.read(&row, 0).and_then(time).map(|now| Answer {
            record: None,
            counts: true,
            now,
        }))
    }
}

impl Answer {
    fn of(connector: &Connector, row: &PgRow) -> Result<Self> {
        if connector.read(row, 10)? {
            let message = format!(
                "{} has become a standby, whose records may be old; where is the primary?",
                connector.endpoint()
            );
            return Err(ERRORS.error(ErrorKind::Unavailable, READ, message));
        }
        let record = match connector.read::<Option<bool>, _>(row, 0)? {
            None => None,
            Some(false) => Some(None),
            Some(true) => Some(Some(record(connector, row)?)),
        };
        Ok(Self {
            record,
            counts: connector.read(row, 9)?,
            now: time(connector.read(row, 8)?)?,
        })
    }
}

/// Reads a record. `None` if it was cleared.
fn record(connector: &Connector, row: &PgRow) -> Result<Option<Record>> {
    let Some(value) = connector.read::<Option<Vec<u8>>, _>(row, 6)? else {
        return Ok(None);
    };
    let owner: String = connector.read(row, 3)?;
    let owner = owner.parse().map_err(|_| ERRORS.unexpected(READ))?;
    let mut record = Record::new(owner, value);
    record.version = number(connector.read(row, 1)?)?;
    record.sequence = number(connector.read(row, 2)?)?;
    let token: Option<i64> = connector.read(row, 4)?;
    record.token = token.map(number).transpose()?.map(FencingToken::new);
    record.label = connector.read(row, 5)?;
    record.written = time(connector.read(row, 7)?)?;
    Ok(Some(record))
}

fn number(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| ERRORS.unexpected(READ))
}

/// Returns the time of this many microseconds since 1970.
fn time(micros: i64) -> Result<SystemTime> {
    Ok(SystemTime::UNIX_EPOCH + Duration::from_micros(number(micros)?))
}

/// Returns the error of a row that Leasehold has not written.
pub(crate) fn not_a_record(key: &LockKey, operation: &'static str) -> Error {
    let message = format!(
        "the row at the place of the record of `{key}` has values that are not those of a record of Leasehold; delete the \
         row, or choose another name"
    );
    ERRORS.error(ErrorKind::Conflict, operation, message)
}

impl fmt::Debug for RecordReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordReader").finish_non_exhaustive()
    }
}

//! [`Connector`]: opens connections to one server.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    Error, ErrorKind, Result, Ttl, backend::support::on_driver_thread, text::parse_exact,
};
use sqlx::{
    AssertSqlSafe, ColumnIndex, ConnectOptions, Connection, Decode, PgConnection, PgExecutor,
    Postgres, Row, Type,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    config::{self, PostgresConfig},
    error::{self, DUPLICATE_OBJECT, ERRORS, INSUFFICIENT_PRIVILEGE, Limit, NO_SUCH_SCHEMA},
    identity::{Answerer, Identity},
    keys::Names,
    server::Server,
};

/// The address of a server and the options of its connections. `Debug` shows no password.
pub(crate) struct Connector {
    options: PgConnectOptions,
    pub(crate) config: PostgresConfig,
    pub(crate) names: Names,
    /// The quoted name of the sequence of fencing tokens. `None` if tokens are off.
    pub(crate) sequence: Option<String>,
    /// The result of the first checks. `None` until the first connection succeeds.
    pub(crate) server: Option<Server>,
    /// Whether the sequence exists, is usable for tokens, and is open to the role.
    pub(crate) sequence_ready: AtomicBool,
    /// The quoted name of the table of the records.
    pub(crate) records: String,
    /// Whether the table of the records exists, keeps them, and is open to the role.
    pub(crate) records_ready: AtomicBool,
    /// The turn of the next check of the table of the records.
    pub(crate) records_turn: Mutex<()>,
    /// The number of connections that hold locks, including those that are being opened.
    session_connections: AtomicUsize,
}

/// Counts one of the connections that `max_sessions` allows, until it is dropped.
pub(crate) struct ConnectionPermit(Arc<Connector>);

impl ConnectionPermit {
    /// Returns `None` if the maximum is reached.
    pub(crate) fn acquire(connector: &Arc<Connector>) -> Option<Self> {
        let max = connector.config.max_sessions;
        let more = |open| (open < max).then_some(open + 1);
        connector
            .session_connections
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        Some(Self(Arc::clone(connector)))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.session_connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connector {
    /// Runs `work`, which opens a connection of its own, on a thread of its own. The driver does
    /// not yield while the server sends faster than the driver reads.
    pub(crate) async fn on_driver_thread<T, F>(
        self: &Arc<Self>,
        operation: &'static str,
        work: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let done = on_driver_thread(self.config.timeout, work(Arc::clone(self))).await;
        done.map_err(|error| error::name_endpoint(error, operation, &self.endpoint()))
    }

    pub(crate) fn new(options: &PgConnectOptions, config: PostgresConfig) -> Result<Self> {
        config::check_tls(options)?;
        // Poolers refuse this setting, and no value here is a float.
        let options = options
            .clone()
            .extra_float_digits(None)
            .disable_statement_logging();
        let sequence = config.quoted_sequence()?;
        let records = config.quoted_records()?;
        let names = Names {
            scheme: config.keys,
            prefix: Arc::clone(&config.prefix),
        };
        let sequence_ready = AtomicBool::new(sequence.is_none());
        Ok(Self {
            options,
            config,
            names,
            sequence,
            server: None,
            sequence_ready,
            records,
            records_ready: AtomicBool::new(false),
            records_turn: Mutex::default(),
            session_connections: AtomicUsize::new(0),
        })
    }

    /// Returns the URL of the server without secrets.
    pub(crate) fn endpoint(&self) -> String {
        let options = &self.options;
        let database = options
            .get_database()
            .unwrap_or_else(|| options.get_username());
        match (options.get_socket(), options.get_host(), options.get_port()) {
            (Some(socket), ..) => format!("postgres:///{database}?host={}", socket.display()),
            (None, folder, _) if folder.starts_with('/') => {
                format!("postgres:///{database}?host={folder}")
            }
            (None, address, port) if address.contains(':') => {
                format!("postgres://[{address}]:{port}/{database}")
            }
            (None, host, port) => format!("postgres://{host}:{port}/{database}"),
        }
    }

    /// Returns the options of a new connection with this name and the current credentials.
    pub(crate) async fn options_of(&self, label: &str) -> Result<PgConnectOptions> {
        let options = self.options.clone().application_name(label);
        let Some(provider) = &self.config.credentials else {
            return Ok(options);
        };
        let credentials = provider.credentials().await?;
        let values = [
            credentials.username().unwrap_or_default(),
            credentials.password(),
        ];
        if values.iter().any(|value| value.contains('\0')) {
            let message = "the user or the password that the credentials provider supplied has a NUL character";
            return Err(ERRORS.error(ErrorKind::InvalidInput, "connect", message));
        }
        let options = options.password(credentials.password());
        Ok(match credentials.username() {
            Some(user) => options.username(user),
            None => options,
        })
    }

    pub(crate) fn map_error(&self, error: sqlx::Error, operation: &'static str) -> Error {
        error::from_driver(error, operation, &self.endpoint())
    }

    /// Returns how long an answer may take if locks of this TTL depend on it.
    pub(crate) fn response_timeout(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 4)
    }

    /// Waits for an answer on which no lock depends.
    pub(crate) async fn within<T>(&self, answer: impl Future<Output = T>) -> Result<T> {
        timeout(self.config.timeout, answer)
            .await
            .map_err(|_elapsed| {
                self.timed_out(ErrorKind::Unavailable, "connect", self.config.timeout)
            })
    }

    pub(crate) fn read<'r, T, I>(&self, row: &'r PgRow, index: I) -> Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
        I: ColumnIndex<PgRow>,
    {
        row.try_get(index)
            .map_err(|error| self.map_error(error, "connect"))
    }

    pub(crate) async fn connect(
        &self,
        label: &str,
        operation: &'static str,
    ) -> Result<PgConnection> {
        match timeout(self.config.connect_timeout, self.log_in(label, operation)).await {
            Ok(connected) => connected.map_err(|error| ERRORS.named(error, operation)),
            Err(_elapsed) => Err(self.not_connected(operation)),
        }
    }

    /// Returns the error of a connection that was not opened in time.
    pub(crate) fn not_connected(&self, operation: &'static str) -> Error {
        let limit = Limit::ConnectTimeout(self.config.connect_timeout);
        error::timed_out(ErrorKind::Unavailable, operation, &self.endpoint(), limit)
    }

    /// Returns the error of an answer that did not come within `limit`, which is the option
    /// `timeout` or the [limit of a TTL](Self::response_timeout).
    pub(crate) fn timed_out(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        limit: Duration,
    ) -> Error {
        let limit = if limit < self.config.timeout {
            Limit::Quarter(limit)
        } else {
            Limit::Timeout(limit)
        };
        error::timed_out(kind, operation, &self.endpoint(), limit)
    }

    /// Logs in. Asks the provider once more if the server refuses its credentials.
    async fn log_in(&self, label: &str, operation: &'static str) -> Result<PgConnection> {
        match self.options_of(label).await?.connect().await {
            Err(error) if self.config.credentials.is_some() && error::is_refused_login(&error) => {}
            connected => return connected.map_err(|error| self.map_error(error, operation)),
        }
        let connected = self.options_of(label).await?.connect().await;
        connected.map_err(|error| {
            if self.server.is_none() || !error::is_refused_login(&error) {
                return self.map_error(error, operation);
            }
            // The server accepted earlier credentials, so the provider may supply valid ones later.
            let message = format!(
                "{} refuses the credentials that the provider supplies now",
                self.endpoint()
            );
            ERRORS
                .error(ErrorKind::Unavailable, operation, message)
                .with_source(error)
        })
    }

    /// Checks that the server answers, on a new connection.
    pub(crate) async fn ping(&self) -> Result<()> {
        let mut connection = self.connect("leasehold pings", "ping").await?;
        let asked = sqlx::raw_sql("SELECT 1").execute(&mut connection);
        match timeout(self.config.timeout, asked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(self.map_error(error, "ping")),
            Err(_elapsed) => {
                return Err(self.timed_out(ErrorKind::Unavailable, "ping", self.config.timeout));
            }
        }
        drop(self.within(connection.close()).await);
        Ok(())
    }

    /// Runs `sql` in a transaction that may write, whatever the default of the role is. Changes no
    /// setting.
    pub(crate) async fn write(
        &self,
        connection: &mut PgConnection,
        sql: &str,
        end: &str,
    ) -> Result<Result<(), sqlx::Error>> {
        let transaction = AssertSqlSafe(format!("BEGIN READ WRITE; {sql}; {end}"));
        let written = self
            .within(sqlx::raw_sql(transaction).execute(&mut *connection))
            .await?;
        if written.as_ref().is_err_and(|error| !error::is_over(error)) {
            let rolled_back = sqlx::raw_sql("ROLLBACK").execute(connection);
            self.within(rolled_back)
                .await?
                .map_err(|error| self.map_error(error, "connect"))?;
        }
        Ok(written.map(drop))
    }

    /// Creates a relation by `sql`, or leaves it to another client that does so at the same time.
    /// Returns the server's error if the role has no right to, or the schema does not exist.
    pub(crate) async fn create(
        &self,
        connection: &mut PgConnection,
        sql: &str,
        operation: &'static str,
    ) -> Result<Result<(), sqlx::Error>> {
        let is_any = |error: &sqlx::Error, codes: &[&str]| {
            codes.iter().any(|code| error::has_code(error, code))
        };
        match self.write(connection, sql, "COMMIT").await? {
            Err(error) if is_any(&error, &DUPLICATE_OBJECT) => Ok(Ok(())),
            Err(error) if !is_any(&error, &[INSUFFICIENT_PRIVILEGE, NO_SUCH_SCHEMA]) => {
                Err(self.map_error(error, operation))
            }
            created => Ok(created),
        }
    }

    /// Returns the role of a connection. The credentials provider may have supplied another one
    /// than the options name.
    pub(crate) async fn role(
        &self,
        connection: &mut PgConnection,
        operation: &'static str,
    ) -> Result<String> {
        let asked = sqlx::query("SELECT session_user::text").fetch_one(connection);
        let row = self.within(asked).await?;
        self.read(&row.map_err(|error| self.map_error(error, operation))?, 0)
    }

    /// Returns the error of a pooler in transaction or statement mode.
    pub(crate) fn refused_pooler(&self, operation: &'static str) -> Error {
        let message = format!(
            "{} cannot hold locks: a pooler in transaction or statement mode stands between it and this program, and \
             locks do not belong to a client there; connect to the server itself, or to a pooler in session mode \
             (PgBouncer: pool_mode = session)",
            self.endpoint()
        );
        ERRORS.error(ErrorKind::Unsupported, operation, message)
    }

    /// Claims the backend that serves the connection, before any setting is changed. Returns the
    /// pid of the backend.
    pub(crate) async fn claim(
        &self,
        connection: impl PgExecutor<'_>,
        identity: &Identity,
        operation: &'static str,
    ) -> Result<i32> {
        let claimed = sqlx::raw_sql(identity.claim()).fetch_one(connection).await;
        self.answerer(
            &claimed.map_err(|error| self.map_error(error, operation))?,
            0,
            operation,
        )
    }

    /// Returns the pid of the claimed backend, or an error if another one answered.
    pub(crate) fn answerer(
        &self,
        row: &PgRow,
        column: usize,
        operation: &'static str,
    ) -> Result<i32> {
        match Answerer::of(self.read(row, column)?) {
            Answerer::Ours(pid) => Ok(pid),
            Answerer::Another => Err(self.refused_pooler(operation)),
            // The server was the primary when the program connected. The address may soon lead to
            // the new primary.
            Answerer::Standby => {
                let message = format!(
                    "{} has become a standby; where is the primary?",
                    self.endpoint()
                );
                Err(ERRORS.error(ErrorKind::Unavailable, operation, message))
            }
        }
    }
}

/// The beginning of the name of a session that holds locks.
const NAME_PREFIX: &str = "leasehold ";

/// The length of a session's name that the server keeps, in bytes. The server refuses a connection
/// with a name of some KiB.
const MAX_LABEL: usize = 63;

/// Returns the name of a session on the server: its TTL, which inspections read, and its label. A
/// NUL character would end the name and begin another parameter of the connection, such as the
/// user.
pub(crate) fn session_name(ttl: Ttl, label: &str) -> String {
    let label = label
        .chars()
        .take(MAX_LABEL)
        .map(|c| if c.is_control() { '?' } else { c });
    format!(
        "{NAME_PREFIX}{}ms {}",
        ttl.as_millis(),
        label.collect::<String>()
    )
}

/// Returns the TTL and the label of a Leasehold session; `None` for other programs.
pub(crate) fn parse_session_name(name: &str) -> Option<(Duration, &str)> {
    let (millis, label) = name.strip_prefix(NAME_PREFIX)?.split_once("ms ")?;
    let ttl = Ttl::from_millis(parse_exact(millis)?).ok()?;
    Some((ttl.as_duration(), label))
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("endpoint", &self.endpoint())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use leasehold_core::Credentials;

    use super::*;
    /// The driver would start another parameter of the connection after it.
    #[tokio::test]
    async fn supplied_credentials_with_a_nul_character_are_refused() {
        for (user, password, is_refused) in [
            ("u", "p", false),
            ("u\0database\0d", "p", true),
            ("u", "p\0", true),
        ] {
            let supplied = Arc::new(Credentials::new(password).with_username(user));
            let config = PostgresConfig::default().with_credentials(supplied);
            let connector =
                Connector::new(&PgConnectOptions::new_without_pgpass(), config).unwrap();
            let options = connector.options_of("leasehold").await;
            let refused = options.err().map(|error| error.kind());
            assert_eq!(
                refused,
                is_refused.then_some(ErrorKind::InvalidInput),
                "{user:?}"
            );
        }
    }

    #[test]
    fn leasehold_sessions_are_recognized_by_their_name() {
        let name = session_name(Ttl::from_secs(30).unwrap(), "web-3/4711/shop ms d");
        assert_eq!(
            parse_session_name(&name),
            Some((Duration::from_secs(30), "web-3/4711/shop ms d"))
        );
        for other in [
            "psql",
            "leasehold +30000ms x",
            "leasehold 030000ms x",
            "leasehold 0ms x",
            "leasehold 18446744073709551615ms x",
        ] {
            assert_eq!(parse_session_name(other), None, "{other}");
        }
        let name = session_name(Ttl::from_secs(30).unwrap(), "a\0user\0postgres\u{1b}");
        assert_eq!(name, "leasehold 30000ms a?user?postgres?");
        assert!(session_name(Ttl::from_secs(30).unwrap(), &"ä".repeat(100_000)).len() < 200);
    }
}

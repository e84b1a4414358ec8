//! [`Link`]: how connections come about, and what is checked and set on each.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    Error, ErrorKind, Result, Ttl, backend::support::on_driver_thread, text::Escaped,
};
use sqlx::{
    AssertSqlSafe, ColumnIndex, ConnectOptions, Connection, Decode, PgConnection, PgExecutor,
    Postgres, Row, Type,
    postgres::{PgConnectOptions, PgRow, PgSslMode},
};
use tokio::time::timeout;

use crate::{
    config::{self, PostgresConfig},
    error::{self, Limit},
    fencing,
    hash::hash_text_extended,
    identity::{Answerer, Identity},
    keys::Names,
    server::{Server, any_asynchronous, why_unfit},
    settings::{Settings, needed, wanted},
    statement::{CHANNEL, Dialect, Statements},
    url,
};

/// How many questions are drawn by lot; see [`Link::refuse_shared_backends`]. At most 64.
const ASKS: u32 = 16;
/// Compared with the server's own: not ASCII, and longer than one round of the hash.
const SAMPLE: &str = "Leasehold: eine Prüfsumme für Namen 🔒";

/// Where the server is and how it is spoken to. Shows no password.
pub(crate) struct Link {
    options: PgConnectOptions,
    pub(crate) config: PostgresConfig,
    pub(crate) names: Names,
    /// Quoted.
    sequence: Option<String>,
    /// The result of the probe. `None` until the first connection succeeds.
    server: Option<Server>,
    /// The sequence is there, fit, and open to the role.
    sequence_ready: AtomicBool,
    /// Of what is asked on connections that hold locks.
    /// Connections that hold locks, open or being opened.
    pub(crate) holding: AtomicUsize,
}

/// A connection that may hold locks.
pub(crate) struct Holding {
    pub(crate) connection: PgConnection,
    pub(crate) statements: Statements,
    pub(crate) pid: i32,
    /// Whether commits wait for a standby.
    pub(crate) synchronous: bool,
    /// The database's oid. Read once: whoever reads the catalogue of databases needs an entry of
    /// the lock table for it, and gives back nothing where that is full.
    pub(crate) database: i64,
}

impl Link {
    /// Connects for the first time: refuses what would break locks.
    pub(crate) async fn connected(
        options: &PgConnectOptions,
        config: PostgresConfig,
    ) -> Result<(Arc<Self>, Server)> {
        let mut link = Self::new(options, config)?;
        warn_of_strangers(options);
        let (patience, endpoint) = (link.config.timeout, link.endpoint());
        let probed = on_driver_thread(patience, async move {
            let server = link.probe().await?;
            link.server = Some(server);
            Ok((Arc::new(link), server))
        });
        probed
            .await
            .map_err(|error| error::in_flood(error, "connect", &endpoint))
    }

    /// Does what opens a connection of its own on a thread of its own: the driver never yields
    /// while the server sends faster than it reads, be it notices, rows, settings or one long
    /// message.
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
        done.map_err(|error| error::in_flood(error, operation, &self.endpoint()))
    }

    pub(crate) fn new(options: &PgConnectOptions, config: PostgresConfig) -> Result<Self> {
        config::check_tls(options)?;
        // Poolers refuse it, and nothing here is a float.
        let options = options
            .clone()
            .extra_float_digits(None)
            .disable_statement_logging();
        let sequence = fencing::quoted(&config)?;
        let names = Names {
            scheme: config.keys,
            prefix: Arc::clone(&config.prefix),
        };
        let holding = AtomicUsize::new(0);
        let sequence_ready = AtomicBool::new(sequence.is_none());
        Ok(Self {
            options,
            config,
            names,
            sequence,
            server: None,
            sequence_ready,
            holding,
        })
    }

    /// Where it lives, without secrets.
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

    /// Returns the options of a new connection: its name, see [`shown`], and the current
    /// credentials.
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
            return Err(error::plain(ErrorKind::InvalidInput, "connect", message));
        }
        let options = options.password(credentials.password());
        Ok(match credentials.username() {
            Some(user) => options.username(user),
            None => options,
        })
    }

    pub(crate) fn failed(&self, error: sqlx::Error, operation: &'static str) -> Error {
        error::of_driver(error, operation, &self.endpoint())
    }

    /// How long an answer may take where locks of this TTL depend on it.
    pub(crate) fn patience(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 4)
    }

    /// Waits for what does not concern locks.
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
            .map_err(|error| self.failed(error, "connect"))
    }

    pub(crate) async fn connect(
        &self,
        label: &str,
        operation: &'static str,
    ) -> Result<PgConnection> {
        match timeout(self.config.connect_timeout, self.log_in(label, operation)).await {
            Ok(connected) => connected.map_err(|error| error::named(error, operation)),
            Err(_elapsed) => Err(self.not_connected(operation)),
        }
    }

    /// No connection came about in time.
    pub(crate) fn not_connected(&self, operation: &'static str) -> Error {
        let limit = Limit::ConnectTimeout(self.config.connect_timeout);
        error::timed_out(ErrorKind::Unavailable, operation, &self.endpoint(), limit)
    }

    /// No answer came within `patience`, which is [that of a TTL](Self::patience) or the option
    /// `timeout`.
    pub(crate) fn timed_out(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        patience: Duration,
    ) -> Error {
        let limit = if patience < self.config.timeout {
            Limit::Quarter(patience)
        } else {
            Limit::Timeout(patience)
        };
        error::timed_out(kind, operation, &self.endpoint(), limit)
    }

    /// Logs in. Asks the provider once more if the server refuses its credentials.
    async fn log_in(&self, label: &str, operation: &'static str) -> Result<PgConnection> {
        match self.options_of(label).await?.connect().await {
            Err(error) if self.config.credentials.is_some() && error::is_refused_login(&error) => {}
            connected => return connected.map_err(|error| self.failed(error, operation)),
        }
        let connected = self.options_of(label).await?.connect().await;
        connected.map_err(|error| {
            if self.server.is_none() || !error::is_refused_login(&error) {
                return self.failed(error, operation);
            }
            // Earlier ones were accepted, so later ones may be.
            let message = format!(
                "{} refuses the credentials that the provider supplies now",
                self.endpoint()
            );
            error::plain(ErrorKind::Unavailable, operation, message).with_source(error)
        })
    }

    /// Asks the server whether it answers.
    pub(crate) async fn ping(&self) -> Result<()> {
        let mut connection = self.connect("leasehold pings", "ping").await?;
        let asked = sqlx::raw_sql("SELECT 1").execute(&mut connection);
        match timeout(self.config.timeout, asked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(self.failed(error, "ping")),
            Err(_elapsed) => {
                return Err(self.timed_out(ErrorKind::Unavailable, "ping", self.config.timeout));
            }
        }
        drop(self.within(connection.close()).await);
        Ok(())
    }

    /// Looks at the server for the first time.
    async fn probe(&mut self) -> Result<Server> {
        let connect = || self.connect("leasehold connects", "connect");
        let (mut one, mut other) = tokio::try_join!(connect(), connect())?;
        self.refuse_shared_backends(&mut one, &mut other).await?;
        let mut server = self.look(&mut one).await?;
        self.refuse_another_hash(&mut one).await?;
        if self.sequence.is_some() {
            // Made by who locks first: who only looks needs no right to it.
            *self.sequence_ready.get_mut() = fencing::is_ready(self, &mut one).await?;
            server.flushes = self.can_flush(&mut one).await?;
        }
        for connection in [one, other] {
            drop(timeout(self.config.timeout, connection.close()).await);
        }
        Ok(server)
    }

    async fn look(&self, connection: &mut PgConnection) -> Result<Server> {
        let looked = sqlx::query(
            "SELECT current_setting('server_version_num')::int4, current_setting('server_encoding'), \
             pg_is_in_recovery(), ARRAY(SELECT sync_state FROM pg_stat_replication), current_setting('fsync') = 'on'",
        );
        let row = self
            .within(looked.fetch_one(connection))
            .await?
            .map_err(|error| self.failed(error, "connect"))?;
        let version = u32::try_from(self.read::<i32, _>(&row, 0)?).unwrap_or(0);
        if let Some(why) = why_unfit(version, self.read(&row, 1)?) {
            return Err(self.refused(&why));
        }
        if self.read(&row, 2)? {
            return Err(self.refused(
                "it is a standby, which shares no locks with its primary; connect to the primary",
            ));
        }
        let standbys: Vec<Option<String>> = self.read(&row, 3)?;
        let asynchronous_standbys = any_asynchronous(&standbys);
        Ok(Server {
            version,
            asynchronous_standbys,
            syncs: self.read(&row, 4)?,
            flushes: true,
        })
    }

    /// Returns whether the role may read how far the log is flushed, and may write to it. A durable
    /// token needs both. Some managed services refuse both (SQLSTATE 55000).
    async fn can_flush(&self, connection: &mut PgConnection) -> Result<bool> {
        let flush = format!(
            "SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn(), pg_logical_emit_message(true, '{CHANNEL}', '')"
        );
        let flushed = self.write(connection, &flush, "ROLLBACK").await?;
        let Err(error) = flushed else { return Ok(true) };
        let error = self.failed(error, "connect");
        if error.is_retryable() {
            return Err(error);
        }
        tracing::warn!(
            target: "leasehold",
            %error,
            "the server does not let this role write to its log: after a crash of the server fencing tokens may repeat"
        );
        Ok(false)
    }

    /// Runs `sql` in a transaction that may write, whatever the role's default is. Changes no
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
                .map_err(|error| self.failed(error, "connect"))?;
        }
        Ok(written.map(drop))
    }

    async fn refuse_another_hash(&self, connection: &mut PgConnection) -> Result<()> {
        let hashed = sqlx::query("SELECT hashtextextended($1, 0)").bind(SAMPLE);
        let row = self
            .within(hashed.fetch_one(connection))
            .await?
            .map_err(|error| self.failed(error, "connect"))?;
        if self.read::<i64, _>(&row, 0)? == hash_text_extended(SAMPLE.as_bytes(), 0) {
            return Ok(());
        }
        Err(self.refused(
            "it hashes names in another way: the database's collation must be deterministic and its machine \
             little-endian",
        ))
    }

    /// Fails if a pooler lends backends for a transaction or a statement.
    ///
    /// It writes nothing, because the backend may be somebody else's. It sends simple queries,
    /// which all such poolers support.
    ///
    /// Each of two connections has one backend, and the two differ. The connection that asks next
    /// is drawn by lot. A pooler that lends its backends in an order of its own knows nothing of
    /// the lots. The backend that it lends next is the right one for at most one of the two
    /// connections, so each question finds the pooler with probability 1/2 at least. All of them
    /// miss it with probability 2^-16 at most, for every order and every number of backends. A
    /// pooler that lends each client the same backend for as long as it can passes. Its locks
    /// exclude each other all the same; see [`identity`](crate::identity).
    async fn refuse_shared_backends(
        &self,
        one: &mut PgConnection,
        other: &mut PgConnection,
    ) -> Result<()> {
        let (first, second) = (self.pid(one).await?, self.pid(other).await?);
        let mut shared = first == second;
        // Each state is another one, and its hash of anything a random number.
        let lots = RandomState::new().hash_one(());
        for ask in 0..ASKS {
            if shared {
                return Err(self.refused_pooler("connect"));
            }
            shared = if lots >> ask & 1 == 0 {
                self.pid(one).await? != first
            } else {
                self.pid(other).await? != second
            };
        }
        if shared {
            Err(self.refused_pooler("connect"))
        } else {
            Ok(())
        }
    }

    async fn pid(&self, connection: &mut PgConnection) -> Result<i32> {
        let asked = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection);
        let row = self
            .within(asked)
            .await?
            .map_err(|error| self.failed(error, "connect"))?;
        self.read(&row, 0)
    }

    fn refused_pooler(&self, operation: &'static str) -> Error {
        let message = format!(
            "{} cannot keep locks: between it and this program stands a pooler in transaction or statement mode, behind which a \
             lock belongs to nobody; connect to the server itself, or to a pooler in session mode (PgBouncer: pool_mode = \
             session)",
            self.endpoint()
        );
        error::plain(ErrorKind::Unsupported, operation, message)
    }

    fn refused(&self, why: &str) -> Error {
        error::plain(
            ErrorKind::Unsupported,
            "connect",
            format!("{} cannot keep locks: {why}", self.endpoint()),
        )
    }

    /// Opens a connection that may hold locks for as long as the server hears of it once per TTL.
    pub(crate) async fn open(&self, ttl: Ttl, label: &str) -> Result<Holding> {
        let mut connection = self.connect(&shown(ttl, label), "acquire").await?;
        if !self.sequence_ready.load(Ordering::Acquire) {
            let made = fencing::ensure(self, &mut connection).await;
            made.map_err(|error| error.with_operation("acquire"))?;
            self.sequence_ready.store(true, Ordering::Release);
        }
        let identity = Identity::random();
        let set_up = timeout(
            self.config.timeout,
            self.set_up(&mut connection, &identity, ttl),
        )
        .await;
        let (pid, synchronous, database) = match set_up {
            Ok(set_up) => set_up?,
            Err(_elapsed) => {
                return Err(self.timed_out(ErrorKind::Unavailable, "acquire", self.config.timeout));
            }
        };
        let dialect = Dialect {
            sequence: self.sequence.as_deref(),
            flushes: self.server.is_some_and(|server| server.flushes),
            pairs: self.config.keys.has_pairs(),
        };
        let statements = Statements::new(dialect, &identity);
        Ok(Holding {
            connection,
            statements,
            pid,
            synchronous,
            database,
        })
    }

    /// Claims the backend that serves the connection, before anything else is set. Returns its pid.
    pub(crate) async fn claim(
        &self,
        connection: impl PgExecutor<'_>,
        identity: &Identity,
        operation: &'static str,
    ) -> Result<i32> {
        let claimed = sqlx::raw_sql(identity.claim()).fetch_one(connection).await;
        self.answerer(
            &claimed.map_err(|error| self.failed(error, operation))?,
            0,
            operation,
        )
    }

    /// Returns the pid of our backend, or why it was not the one that answered.
    fn answerer(&self, row: &PgRow, column: usize, operation: &'static str) -> Result<i32> {
        match Answerer::of(self.read(row, column)?) {
            Answerer::Ours(pid) => Ok(pid),
            Answerer::Another => Err(self.refused_pooler(operation)),
            // It was the primary when the program connected. The address may soon lead to another.
            Answerer::Standby => {
                let message = format!(
                    "{} has become a standby; where is the primary?",
                    self.endpoint()
                );
                Err(error::plain(ErrorKind::Unavailable, operation, message))
            }
        }
    }

    async fn set_up(
        &self,
        connection: &mut PgConnection,
        identity: &Identity,
        ttl: Ttl,
    ) -> Result<(i32, bool, i64)> {
        let pid = self.claim(&mut *connection, identity, "acquire").await?;
        // In another statement, which finds a pooler that resets after each.
        let asked = AssertSqlSafe(format!(
            "SELECT {}, current_setting('server_version_num')::int4, current_setting('synchronous_standby_names') <> '', \
             (SELECT oid::int8 FROM pg_database WHERE datname = current_database())",
            identity.answer()
        ));
        let asked = sqlx::raw_sql(asked).fetch_one(&mut *connection).await;
        let row = asked.map_err(|error| self.failed(error, "acquire"))?;
        self.answerer(&row, 0, "acquire")?;
        let version: i32 = self.read(&row, 1)?;
        let (synchronous, database) = (self.read(&row, 2)?, self.read(&row, 3)?);
        let (version, patience) = (version.cast_unsigned(), self.patience(ttl));
        let needed = needed(version, ttl, patience);
        if !self.set(connection, identity, &needed).await? {
            let names: Vec<&str> = needed.iter().map(|(name, _)| *name).collect();
            let message = format!(
                "{} does not keep the settings {}",
                self.endpoint(),
                names.join(", ")
            );
            return Err(error::plain(ErrorKind::Unsupported, "acquire", message));
        }
        match self.set(connection, identity, &wanted(version, ttl)).await {
            Ok(true) => {}
            // Where the server's system has none of them, the idle time-out is left.
            Ok(false) => {
                tracing::debug!(target: "leasehold", "the server cannot watch the connection more closely");
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedResponse => {
                tracing::debug!(target: "leasehold", %error, "the server cannot watch the connection more closely");
            }
            Err(error) => return Err(error),
        }
        Ok((pid, synchronous, database))
    }

    /// Changes the settings and reads them back in another statement. Returns whether they are
    /// kept.
    async fn set(
        &self,
        connection: &mut PgConnection,
        identity: &Identity,
        settings: &Settings,
    ) -> Result<bool> {
        let values: Vec<String> = settings
            .iter()
            .map(|(name, value)| format!("('{name}', '{value}')"))
            .collect();
        let from = format!(
            "FROM (VALUES {}) AS s(n, v) WHERE {}",
            values.join(", "),
            identity.is_here()
        );
        let mut told: [Option<String>; 2] = [None, None];
        for (told, value) in told
            .iter_mut()
            .zip(["set_config(n, v, false)", "current_setting(n)"])
        {
            let sql = AssertSqlSafe(format!(
                "SELECT {}, string_agg({value}, ' ') {from}",
                identity.answer()
            ));
            let asked = sqlx::raw_sql(sql).fetch_one(&mut *connection).await;
            let row = asked.map_err(|error| self.failed(error, "acquire"))?;
            self.answerer(&row, 0, "acquire")?;
            *told = self.read(&row, 1)?;
        }
        Ok(told[0] == told[1])
    }
}

/// Logs a warning if nothing proves that it is the server who answers: anybody else who does gets
/// the password.
fn warn_of_strangers(options: &PgConnectOptions) {
    let mode = match options.get_ssl_mode() {
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        // The server proves it, or the user has decided against it.
        _ => return,
    };
    if !url::is_local(options) {
        tracing::warn!(
            target: "leasehold",
            "sslmode={mode} does not verify that it is {host} who answers; write sslmode=verify-full, or sslmode=disable \
             if the network is trusted",
            host = Escaped(options.get_host()),
        );
    }
}

const SHOWN: &str = "leasehold ";

/// How much of a session's name the server keeps, in bytes. It refuses a connection with a name of
/// some KiB.
const KEPT: usize = 63;

/// How a session is named on the server: its TTL for those who inspect, and who it is. A NUL
/// character would end the name and begin another parameter of the connection, such as its user.
fn shown(ttl: Ttl, label: &str) -> String {
    let label = label
        .chars()
        .take(KEPT)
        .map(|c| if c.is_control() { '?' } else { c });
    format!("{SHOWN}{}ms {}", ttl.as_millis(), label.collect::<String>())
}

/// The TTL and the label of a session of ours.
pub(crate) fn read_shown(name: &str) -> Option<(Duration, &str)> {
    let (millis, label) = name.strip_prefix(SHOWN)?.split_once("ms ")?;
    Some((Duration::from_millis(millis.parse().ok()?), label))
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("endpoint", &self.endpoint())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use leasehold_core::Credentials;
    use leasehold_testkit::PanickingSubscriber;

    use super::*;
    use crate::url::ParsedUrl;

    #[test]
    fn a_server_that_is_not_verified_is_warned_of() {
        for (url, warned) in [
            ("postgres://u@h/?sslmode=prefer", true),
            ("postgres://u@10.0.0.1/?sslmode=require", true),
            ("postgres://u@h/?sslmode=disable", false),
            ("postgres://u@h/?sslmode=verify-full", false),
            ("postgres://u@[::1]/?sslmode=prefer", false),
            ("postgres://u@localhost/?sslmode=prefer", false),
            ("postgres://u@/?host=/run/x&sslmode=prefer", false),
        ] {
            let options = ParsedUrl::parse(url).unwrap().options;
            let (subscriber, _) = PanickingSubscriber::new(None);
            let warn =
                || tracing::subscriber::with_default(subscriber, || warn_of_strangers(&options));
            assert_eq!(
                catch_unwind(AssertUnwindSafe(warn)).is_err(),
                warned,
                "{url}"
            );
        }
    }

    /// The driver would begin another parameter of the connection behind it.
    #[tokio::test]
    async fn supplied_credentials_with_a_nul_character_are_refused() {
        for (user, password, is_refused) in [
            ("u", "p", false),
            ("u\0database\0d", "p", true),
            ("u", "p\0", true),
        ] {
            let supplied = Arc::new(Credentials::new(password).with_username(user));
            let config = PostgresConfig::default().with_credentials(supplied);
            let link = Link::new(&PgConnectOptions::new_without_pgpass(), config).unwrap();
            let options = link.options_of("leasehold").await;
            let refused = options.err().map(|error| error.kind());
            assert_eq!(
                refused,
                is_refused.then_some(ErrorKind::InvalidInput),
                "{user:?}"
            );
        }
    }

    #[test]
    fn a_session_of_ours_is_known_by_its_name() {
        let name = shown(Ttl::from_secs(30).unwrap(), "web-3/4711/shop ms d");
        assert_eq!(
            read_shown(&name),
            Some((Duration::from_secs(30), "web-3/4711/shop ms d"))
        );
        assert_eq!(read_shown("psql"), None);
        let name = shown(Ttl::from_secs(30).unwrap(), "a\0user\0postgres\u{1b}");
        assert_eq!(name, "leasehold 30000ms a?user?postgres?");
        assert!(shown(Ttl::from_secs(30).unwrap(), &"ä".repeat(100_000)).len() < 200);
    }
}

//! [`Link`]: how connections come about, and what is checked and set on each.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use leasehold_core::{Error, ErrorKind, Patience, Result, Ttl};
use sqlx::{
    ColumnIndex, ConnectOptions, Connection, Decode, PgConnection, Postgres, Row, Type,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::time::timeout;

use crate::{
    config::{self, PostgresConfig},
    error, fencing,
    hash::hash_text_extended,
    keys::Names,
    server::{Server, any_asynchronous, why_unfit},
    settings::{needed, wanted},
    statement::Statements,
};

/// How often the two connections are asked in turn who serves them.
const ROUNDS: usize = 3;
/// Compared with the server's own: not ASCII, and longer than one round of the hash.
const SAMPLE: &str = "Leasehold: eine Prüfsumme für Namen 🔒";

/// Where the server is and how it is spoken to. Shows no password.
pub(crate) struct Link {
    options: PgConnectOptions,
    pub(crate) config: PostgresConfig,
    pub(crate) names: Names,
    pub(crate) statements: Statements,
    /// Of what is asked on connections that hold locks.
    pub(crate) time_outs: Arc<Patience>,
    /// Connections that hold locks, open or being opened.
    pub(crate) holding: AtomicUsize,
}

/// A connection that may hold locks.
pub(crate) struct Holding {
    pub(crate) connection: PgConnection,
    pub(crate) pid: i32,
    /// Whether commits wait for a standby.
    pub(crate) synchronous: bool,
    /// The database's oid. Read once: whoever reads the catalogue of databases needs an entry of the lock table for it, and
    /// gives back nothing where that is full.
    pub(crate) database: i64,
}

impl Link {
    pub(crate) fn new(options: &PgConnectOptions, config: PostgresConfig) -> Result<Arc<Self>> {
        config::check_tls(options)?;
        // Poolers refuse it, and nothing here is a float.
        let options = options.clone().extra_float_digits(None).disable_statement_logging();
        let sequence = fencing::quoted(&config)?;
        let statements = Statements::new(sequence.as_deref(), config.keys.has_pairs());
        let names = Names { scheme: config.keys, prefix: Arc::clone(&config.prefix) };
        let (time_outs, holding) = (Arc::default(), AtomicUsize::new(0));
        Ok(Arc::new(Self { options, config, names, statements, time_outs, holding }))
    }

    /// Where it lives, without secrets.
    pub(crate) fn endpoint(&self) -> String {
        let database = self.options.get_database().unwrap_or_else(|| self.options.get_username());
        match self.options.get_socket() {
            Some(socket) => format!("postgres:///{database}?host={}", socket.display()),
            None => format!("postgres://{}:{}/{database}", self.options.get_host(), self.options.get_port()),
        }
    }

    pub(crate) fn user(&self) -> &str {
        self.options.get_username()
    }

    /// Options that name the connection for people; see [`label`](Self::label).
    pub(crate) fn options_of(&self, label: &str) -> PgConnectOptions {
        self.options.clone().application_name(label)
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
            .map_err(|_elapsed| error::timed_out(ErrorKind::Unavailable, "connect", &self.endpoint()))
    }

    pub(crate) fn read<'r, T, I>(&self, row: &'r PgRow, index: I) -> Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
        I: ColumnIndex<PgRow>,
    {
        row.try_get(index).map_err(|error| self.failed(error, "connect"))
    }

    pub(crate) async fn connect(&self, label: &str, operation: &'static str) -> Result<PgConnection> {
        let options = self.options_of(label);
        match timeout(self.config.connect_timeout, options.connect()).await {
            Ok(connected) => connected.map_err(|error| self.failed(error, operation)),
            Err(_elapsed) => Err(error::timed_out(ErrorKind::Unavailable, operation, &self.endpoint())),
        }
    }

    /// Looks at the server for the first time: refuses what would break locks.
    pub(crate) async fn probe(&self) -> Result<Server> {
        let (mut one, mut other) = (
            self.connect("leasehold connects", "connect").await?,
            self.connect("leasehold connects", "connect").await?,
        );
        self.refuse_shared_backends(&mut one, &mut other).await?;
        let server = self.look(&mut one).await?;
        self.refuse_another_hash(&mut one).await?;
        fencing::ensure(self, &mut one).await?;
        for connection in [one, other] {
            drop(timeout(self.config.timeout, connection.close()).await);
        }
        Ok(server)
    }

    async fn look(&self, connection: &mut PgConnection) -> Result<Server> {
        let looked = sqlx::query(
            "SELECT current_setting('server_version_num')::int4, current_setting('server_encoding'), \
             pg_is_in_recovery(), ARRAY(SELECT sync_state FROM pg_stat_replication)",
        );
        let row = self.within(looked.fetch_one(connection)).await?.map_err(|error| self.failed(error, "connect"))?;
        let version = u32::try_from(self.read::<i32, _>(&row, 0)?).unwrap_or(0);
        if let Some(why) = why_unfit(version, self.read(&row, 1)?) {
            return Err(self.refused(&why));
        }
        if self.read(&row, 2)? {
            return Err(self.refused_standby());
        }
        let standbys: Vec<Option<String>> = self.read(&row, 3)?;
        Ok(Server { version, asynchronous_standbys: any_asynchronous(&standbys) })
    }

    async fn refuse_another_hash(&self, connection: &mut PgConnection) -> Result<()> {
        let hashed = sqlx::query("SELECT hashtextextended($1, 0)").bind(SAMPLE);
        let row = self.within(hashed.fetch_one(connection)).await?.map_err(|error| self.failed(error, "connect"))?;
        if self.read::<i64, _>(&row, 0)? == hash_text_extended(SAMPLE.as_bytes(), 0) {
            return Ok(());
        }
        Err(self.refused(
            "it hashes names in another way: the database's collation must be deterministic and its machine \
             little-endian",
        ))
    }

    /// Two idle connections of ours that the same backend serves, or one that several serve: a pooler that lends backends out
    /// for a transaction or a statement. Unprepared statements, which such poolers know.
    async fn refuse_shared_backends(&self, one: &mut PgConnection, other: &mut PgConnection) -> Result<()> {
        let (first, second) = (self.pid(one).await?, self.pid(other).await?);
        let mut shared = first == second;
        for _ in 1..ROUNDS {
            shared |= self.pid(one).await? != first || self.pid(other).await? != second;
        }
        if !shared {
            return Ok(());
        }
        Err(self.refused(
            "between it and this program stands a pooler in transaction or statement mode, behind which a lock belongs to \
             nobody; connect to the server itself, or to a pooler in session mode (PgBouncer: pool_mode = session)",
        ))
    }

    async fn pid(&self, connection: &mut PgConnection) -> Result<i32> {
        let asked = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection);
        let row = self.within(asked).await?.map_err(|error| self.failed(error, "connect"))?;
        self.read(&row, 0)
    }

    fn refused(&self, why: &str) -> Error {
        error::plain(ErrorKind::Unsupported, "connect", format!("{} cannot keep locks: {why}", self.endpoint()))
    }

    fn refused_standby(&self) -> Error {
        self.refused("it is a standby, which shares no locks with its primary; connect to the primary")
    }

    /// Opens a connection that may hold locks for as long as the server hears of it once per TTL.
    pub(crate) async fn open(&self, ttl: Ttl, label: &str) -> Result<Holding> {
        let mut connection = self.connect(&shown(ttl, label), "acquire").await?;
        let set_up = timeout(self.config.timeout, self.set_up(&mut connection, ttl)).await;
        let (pid, synchronous, database) = match set_up {
            Ok(set_up) => set_up?,
            Err(_elapsed) => return Err(error::timed_out(ErrorKind::Unavailable, "acquire", &self.endpoint())),
        };
        Ok(Holding { connection, pid, synchronous, database })
    }

    async fn set_up(&self, connection: &mut PgConnection, ttl: Ttl) -> Result<(i32, bool, i64)> {
        let failed = |error| self.failed(error, "acquire");
        let asked = "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('server_version_num')::int4, \
                     current_setting('synchronous_standby_names') <> '', \
                     (SELECT oid::int8 FROM pg_database WHERE datname = current_database())";
        let row = sqlx::query(asked).fetch_one(&mut *connection).await.map_err(failed)?;
        if self.read(&row, 1)? {
            return Err(self.refused_standby());
        }
        let (pid, version): (i32, i32) = (self.read(&row, 0)?, self.read(&row, 2)?);
        let (synchronous, database) = (self.read(&row, 3)?, self.read(&row, 4)?);
        let (version, patience) = (version.cast_unsigned(), self.patience(ttl));
        self.set(connection, needed(version, ttl, patience), "acquire").await?;
        // Where the server's system has none of them, the idle time-out is left.
        if let Err(error) = self.set(connection, wanted(version, ttl), "acquire").await {
            tracing::debug!(target: "leasehold", %error, "the server cannot watch the connection more closely");
        }
        Ok((pid, synchronous, database))
    }

    /// Sets, and reads back in another statement.
    pub(crate) async fn set(
        &self,
        connection: &mut PgConnection,
        settings: Vec<(&str, String)>,
        operation: &'static str,
    ) -> Result<()> {
        let failed = |error| self.failed(error, operation);
        let (names, values): (Vec<&str>, Vec<String>) = settings.into_iter().unzip();
        let set = "SELECT array_agg(set_config(n, v, false)) FROM unnest($1::text[], $2::text[]) AS s(n, v)";
        let row = sqlx::query(set).bind(&names).bind(&values).fetch_one(&mut *connection).await.map_err(failed)?;
        let told: Vec<Option<String>> = self.read(&row, 0)?;
        let show = "SELECT array_agg(current_setting(n)) FROM unnest($1::text[]) AS s(n)";
        let row = sqlx::query(show).bind(&names).fetch_one(connection).await.map_err(failed)?;
        let read: Vec<Option<String>> = self.read(&row, 0)?;
        if told == read {
            return Ok(());
        }
        Err(error::plain(
            ErrorKind::Unsupported,
            operation,
            format!(
                "{} does not keep the settings {}; is there a pooler in between?",
                self.endpoint(),
                names.join(", ")
            ),
        ))
    }
}

const SHOWN: &str = "leasehold ";

/// How a session is named on the server: its TTL for those who inspect, and who it is. The server keeps 63 bytes.
fn shown(ttl: Ttl, label: &str) -> String {
    format!("{SHOWN}{}ms {label}", ttl.as_millis())
}

/// The TTL and the label of a session of ours.
pub(crate) fn read_shown(name: &str) -> Option<(Duration, &str)> {
    let (millis, label) = name.strip_prefix(SHOWN)?.split_once("ms ")?;
    Some((Duration::from_millis(millis.parse().ok()?), label))
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("endpoint", &self.endpoint()).field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_ours_is_known_by_its_name() {
        let name = shown(Ttl::from_secs(30).unwrap(), "web-3/4711/shop ms d");
        assert_eq!(read_shown(&name), Some((Duration::from_secs(30), "web-3/4711/shop ms d")));
        assert_eq!(read_shown("psql"), None);
    }
}

//! The checks of a server before it is used, and the set-up of a connection that holds locks.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, atomic::Ordering},
};

use leasehold_core::{
    Error, ErrorKind, Result, Ttl, backend::support::on_driver_thread, text::Escaped,
};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::time::timeout;

use crate::{
    config::{self, PostgresConfig},
    connection::{Connector, session_name},
    error::{self, ERRORS},
    fencing,
    hash::hash_text_extended,
    identity::Identity,
    server::{Server, any_asynchronous, unsupported_reason},
    settings::{Settings, needed, wanted},
    statement::{CHANNEL, Dialect, Statements},
};

/// The number of random checks for a pooler; see [`Connector::check_no_pooler`]. At most 64.
const POOLER_CHECKS: u32 = 16;
/// A text that is not ASCII and longer than one round of the hash.
const SAMPLE: &str = "Leasehold: eine Prüfsumme für Namen 🔒";

/// A new connection that may hold locks, with what was read when it was set up.
pub(crate) struct OpenedConnection {
    pub(crate) connection: PgConnection,
    pub(crate) statements: Statements,
    pub(crate) pid: i32,
    /// Whether commits wait for a standby.
    pub(crate) synchronous: bool,
    /// The oid of the database. It is read once, because a statement that reads the catalogue of
    /// databases needs an entry of the lock table and fails if that table is full.
    pub(crate) database: i64,
}

/// Connects for the first time. Refuses servers on which locks would not be safe.
pub(crate) async fn connect(
    options: &PgConnectOptions,
    config: PostgresConfig,
) -> Result<(Arc<Connector>, Server)> {
    let mut connector = Connector::new(options, config)?;
    warn_if_unverified(options);
    let (response_timeout, endpoint) = (connector.config.timeout, connector.endpoint());
    let probed = on_driver_thread(response_timeout, async move {
        let server = connector.probe().await?;
        connector.server = Some(server);
        Ok((Arc::new(connector), server))
    });
    probed
        .await
        .map_err(|error| error::name_endpoint(error, "connect", &endpoint))
}

impl Connector {
    /// Runs the first checks of the server.
    async fn probe(&mut self) -> Result<Server> {
        let connect = || self.connect("leasehold connects", "connect");
        let (mut one, mut other) = tokio::try_join!(connect(), connect())?;
        self.check_no_pooler(&mut one, &mut other).await?;
        let mut server = self.look(&mut one).await?;
        self.check_hash(&mut one).await?;
        if self.sequence.is_some() {
            // The first acquisition creates it: a program that only inspects needs no right to it.
            *self.sequence_ready.get_mut() = fencing::is_ready(self, &mut one).await?;
            server.flushes = self.can_flush(&mut one).await?;
        }
        for connection in [one, other] {
            drop(timeout(self.config.timeout, connection.close()).await);
        }
        Ok(server)
    }

    /// Reads the version, the role and the settings of the server.
    async fn look(&self, connection: &mut PgConnection) -> Result<Server> {
        let looked = sqlx::query(
            "SELECT current_setting('server_version_num')::int4, current_setting('server_encoding'), \
             pg_is_in_recovery(), ARRAY(SELECT sync_state FROM pg_stat_replication), current_setting('fsync') = 'on'",
        );
        let row = self
            .within(looked.fetch_one(connection))
            .await?
            .map_err(|error| self.map_error(error, "connect"))?;
        let version = u32::try_from(self.read::<i32, _>(&row, 0)?).unwrap_or(0);
        if let Some(why) = unsupported_reason(version, self.read(&row, 1)?) {
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

    /// Returns whether the role may read how far the WAL is flushed, and may write to the WAL. A
    /// durable token needs both. Some managed services refuse both (SQLSTATE 55000).
    async fn can_flush(&self, connection: &mut PgConnection) -> Result<bool> {
        let flush = format!(
            "SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn(), pg_logical_emit_message(true, '{CHANNEL}', '')"
        );
        let flushed = self.write(connection, &flush, "ROLLBACK").await?;
        let Err(error) = flushed else { return Ok(true) };
        let error = self.map_error(error, "connect");
        if error.is_retryable() {
            return Err(error);
        }
        tracing::warn!(
            target: "leasehold",
            %error,
            "the server does not let this role write to its WAL: fencing tokens may repeat after a crash of the server"
        );
        Ok(false)
    }

    /// Fails if the database computes another hash of a name than this crate.
    async fn check_hash(&self, connection: &mut PgConnection) -> Result<()> {
        let hashed = sqlx::query("SELECT hashtextextended($1, 0)").bind(SAMPLE);
        let row = self
            .within(hashed.fetch_one(connection))
            .await?
            .map_err(|error| self.map_error(error, "connect"))?;
        if self.read::<i64, _>(&row, 0)? == hash_text_extended(SAMPLE.as_bytes(), 0) {
            return Ok(());
        }
        Err(self.refused(
            "it computes other hashes of names; the database needs a deterministic collation and a \
             little-endian machine",
        ))
    }

    /// Fails if a pooler lends backends for a transaction or a statement.
    ///
    /// The check writes nothing, because the backend may belong to another client. It sends simple
    /// queries, which all such poolers support.
    ///
    /// Without a pooler, each of two connections has one backend, and the two differ. The
    /// connection of each query is chosen at random. The order in which a pooler lends its backends
    /// does not depend on that choice. The backend that it lends next is the right one for at most
    /// one of the two connections, so each query detects the pooler with a probability of at least
    /// 1/2. All of them miss it with a probability of at most 2^-16, for every order and every
    /// number of backends. A pooler that lends each client the same backend for as long as it can
    /// passes the check. Exclusion does not depend on the check; see [`identity`](crate::identity).
    async fn check_no_pooler(
        &self,
        one: &mut PgConnection,
        other: &mut PgConnection,
    ) -> Result<()> {
        let (first, second) = (self.pid(one).await?, self.pid(other).await?);
        let mut shared = first == second;
        // Every state hashes differently, so the hash of any value is a random number.
        let choices = RandomState::new().hash_one(());
        for check in 0..POOLER_CHECKS {
            if shared {
                return Err(self.refused_pooler("connect"));
            }
            shared = if choices >> check & 1 == 0 {
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

    /// Returns the pid of the backend that serves the connection.
    async fn pid(&self, connection: &mut PgConnection) -> Result<i32> {
        let asked = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection);
        let row = self
            .within(asked)
            .await?
            .map_err(|error| self.map_error(error, "connect"))?;
        self.read(&row, 0)
    }

    fn refused(&self, why: &str) -> Error {
        ERRORS.error(
            ErrorKind::Unsupported,
            "connect",
            format!("{} cannot hold locks: {why}", self.endpoint()),
        )
    }

    /// Opens a connection that may hold locks. The server ends it if it is silent for a TTL.
    pub(crate) async fn open(&self, ttl: Ttl, label: &str) -> Result<OpenedConnection> {
        let mut connection = self.connect(&session_name(ttl, label), "acquire").await?;
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
            records: &self.records,
        };
        let statements = Statements::new(dialect, &identity);
        Ok(OpenedConnection {
            connection,
            statements,
            pid,
            synchronous,
            database,
        })
    }

    async fn set_up(
        &self,
        connection: &mut PgConnection,
        identity: &Identity,
        ttl: Ttl,
    ) -> Result<(i32, bool, i64)> {
        let pid = self.claim(&mut *connection, identity, "acquire").await?;
        // Another statement, so that a pooler that resets after each statement is detected.
        let asked = AssertSqlSafe(format!(
            "SELECT {}, current_setting('server_version_num')::int4, current_setting('synchronous_standby_names') <> '', \
             (SELECT oid::int8 FROM pg_database WHERE datname = current_database())",
            identity.answer()
        ));
        let asked = sqlx::raw_sql(asked).fetch_one(&mut *connection).await;
        let row = asked.map_err(|error| self.map_error(error, "acquire"))?;
        self.answerer(&row, 0, "acquire")?;
        let version: i32 = self.read(&row, 1)?;
        let (synchronous, database) = (self.read(&row, 2)?, self.read(&row, 3)?);
        let (version, response_timeout) = (version.cast_unsigned(), self.response_timeout(ttl));
        let needed = needed(version, ttl, response_timeout);
        if !self.set(connection, identity, &needed).await? {
            let names: Vec<&str> = needed.iter().map(|(name, _)| *name).collect();
            let message = format!(
                "{} does not keep the settings {}",
                self.endpoint(),
                names.join(", ")
            );
            return Err(ERRORS.error(ErrorKind::Unsupported, "acquire", message));
        }
        match self.set(connection, identity, &wanted(version, ttl)).await {
            Ok(true) => {}
            // On a system without these settings, the idle time-out remains.
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

    /// Changes the settings and reads them back in another statement. Returns whether the server
    /// kept them.
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
            "FROM (VALUES {}) AS setting(name, value) WHERE {}",
            values.join(", "),
            identity.is_here()
        );
        let mut values: [Option<String>; 2] = [None, None];
        for (slot, value) in values
            .iter_mut()
            .zip(["set_config(name, value, false)", "current_setting(name)"])
        {
            let sql = AssertSqlSafe(format!(
                "SELECT {}, string_agg({value}, ' ') {from}",
                identity.answer()
            ));
            let asked = sqlx::raw_sql(sql).fetch_one(&mut *connection).await;
            let row = asked.map_err(|error| self.map_error(error, "acquire"))?;
            self.answerer(&row, 0, "acquire")?;
            *slot = self.read(&row, 1)?;
        }
        Ok(values[0] == values[1])
    }
}

/// Logs a warning if the options do not verify the identity of the server. An impostor would get
/// the password.
fn warn_if_unverified(options: &PgConnectOptions) {
    let mode = match options.get_ssl_mode() {
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        // The server is verified, or the user has chosen not to verify it.
        _ => return,
    };
    if !config::is_local(options) {
        tracing::warn!(
            target: "leasehold",
            "sslmode={mode} does not verify the identity of {host}; write sslmode=verify-full, or sslmode=disable if the \
             network is trusted",
            host = Escaped(options.get_host()),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use leasehold_testkit::{PanickingSubscriber, subscribe};

    use super::*;
    use crate::config::ParsedUrl;

    #[test]
    fn unverified_servers_are_logged_as_warnings() {
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
            let _subscribed = subscribe(subscriber);
            let warn = || warn_if_unverified(&options);
            assert_eq!(
                catch_unwind(AssertUnwindSafe(warn)).is_err(),
                warned,
                "{url}"
            );
        }
    }
}

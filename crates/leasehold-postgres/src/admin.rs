//! Inspection and revocation: the holders of a key, its waiters, and the forced end of a lock.

use std::{
    collections::BTreeSet,
    fmt,
    num::NonZeroU32,
    str::FromStr,
    time::{Duration, Instant, SystemTime},
};

use leasehold_core::{
    ErrorKind, HolderConnection, HolderRef, Inspection, LockKey, Mode, Result, Revocation,
    RevokeOutcome, WaiterRef, text::parse_exact,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgRow};

use crate::{
    connection::{Connector, parse_session_name},
    error::ERRORS,
    identity::Identity,
    keys::{AdvisoryKey, PermitKeys},
    statement::{
        IN_THIS_DATABASE, LOCK_KEY, SESSION_START, may_end, without_count, without_writer,
    },
};

/// Returns the SQL that reads the sessions that hold or wait for a key. Parameters: `$1` the keys;
/// `$2` which are pairs; `$3` the bits that the keys of all counts of a semaphore have in common.
///
/// Returns one row per session and key: `classid`, `objid` and `objsubid` of the key; whether it is
/// exclusive; whether it is granted; the pid, the name, the address and the start of the session;
/// the milliseconds since its last statement, if it is idle; and the seconds since it connected.
/// Without `pg_read_all_stats`, a role sees less of the sessions of other roles.
fn read_locks() -> String {
    format!(
        "SELECT l.classid::int8, l.objid::int8, l.objsubid, l.mode = 'ExclusiveLock', l.granted, \
         l.pid, coalesce(a.application_name, ''), host(a.client_addr), {SESSION_START}, \
         CASE WHEN a.state = 'idle' \
         THEN (extract(epoch FROM clock_timestamp() - a.state_change) * 1000)::int8 END, \
         extract(epoch FROM clock_timestamp() - a.backend_start)::int8 \
         FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid \
         WHERE {IN_THIS_DATABASE} AND (({LOCK_KEY}, l.objsubid = 2) IN \
         (SELECT key, is_pair FROM unnest($1::int8[], $2::bool[]) AS wanted(key, is_pair)) \
         OR l.objsubid = 1 AND {any_count} = $3) \
         ORDER BY a.backend_start, l.pid",
        any_count = without_count(LOCK_KEY)
    )
}

/// A row of `pg_locks`: a session that holds a key, or that waits for it in the server.
pub(crate) struct PgLockRow {
    pub(crate) key: AdvisoryKey,
    pub(crate) exclusive: bool,
    pub(crate) granted: bool,
    pub(crate) pid: i32,
    pub(crate) name: String,
    pub(crate) address: Option<String>,
    /// The start of the session, in microseconds since 1970.
    pub(crate) started: i64,
    /// The time since its last statement, if it is idle.
    pub(crate) silent: Option<Duration>,
    /// The time since it connected.
    pub(crate) connected: Option<Duration>,
}

/// Returns the holders of `key` and its waiters.
pub(crate) async fn inspect(connector: &Connector, key: &LockKey) -> Result<Inspection> {
    let snapshot = read_snapshot(connector, key).await?;
    let mut inspection = Inspection::default();
    inspection.holders = snapshot
        .holders()
        .map(|(row, mode)| row.holder(key, mode))
        .collect();
    inspection.waiters = snapshot.waiters().collect();
    Ok(inspection)
}

/// The rows of `pg_locks` for one name, and the keys of the name.
struct Snapshot {
    rows: Vec<PgLockRow>,
    /// `None` if the key scheme has no lock of this name. A semaphore may have such a name.
    lock: Option<AdvisoryKey>,
    semaphore: PermitKeys,
    of: Option<NonZeroU32>,
    permits: Vec<AdvisoryKey>,
}

/// Reads the rows for one name.
async fn read_snapshot(connector: &Connector, key: &LockKey) -> Result<Snapshot> {
    let mut connection = connector.connect("leasehold inspects", "inspect").await?;
    let lock = connector.names.lock(key).ok();
    let semaphore = connector.names.semaphore(key, 1)?;
    let mut snapshot = Snapshot {
        rows: Vec::new(),
        lock,
        semaphore,
        of: None,
        permits: Vec::new(),
    };
    let asked: Vec<AdvisoryKey> = [
        lock,
        snapshot.waits(),
        snapshot.writer_waits(),
        Some(snapshot.permit_waits()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let any_count = snapshot.semaphore.any_count();
    snapshot.rows = look(connector, &mut connection, &asked, any_count).await?;
    snapshot.of = snapshot
        .rows
        .iter()
        .filter_map(|row| count(&snapshot.semaphore, row.key))
        .next();
    if let Some(of) = snapshot.of {
        snapshot.permits = permits(connector, key, of)?;
        snapshot
            .rows
            .extend(look(connector, &mut connection, &snapshot.permits, any_count).await?);
    }
    drop(connection.close().await);
    Ok(snapshot)
}

impl Snapshot {
    fn waits(&self) -> Option<AdvisoryKey> {
        self.lock
            .map(|lock| AdvisoryKey::Int64(lock.waiter_marker()))
    }

    fn writer_waits(&self) -> Option<AdvisoryKey> {
        self.lock
            .map(|lock| AdvisoryKey::Int64(lock.writer_marker()))
    }

    fn permit_waits(&self) -> AdvisoryKey {
        AdvisoryKey::Int64(self.semaphore.key().waiter_marker())
    }

    fn permit_mode(&self) -> Option<Mode> {
        self.of.map(|of| Mode::Permit { of })
    }

    /// Returns the mode in which the row holds the lock or a permit, or waits for it in the server.
    fn mode(&self, row: &PgLockRow) -> Option<Mode> {
        if self.permits.contains(&row.key) {
            return self.permit_mode();
        }
        (Some(row.key) == self.lock).then_some(if row.exclusive {
            Mode::Exclusive
        } else {
            Mode::Shared
        })
    }

    fn holders(&self) -> impl Iterator<Item = (&PgLockRow, Mode)> {
        self.rows
            .iter()
            .filter(|row| row.granted)
            .filter_map(|row| Some((row, self.mode(row)?)))
    }

    fn waiters(&self) -> impl Iterator<Item = WaiterRef> {
        let (waits, writer_waits) = (self.waits(), self.writer_waits());
        let is_writers = move |row: &&PgLockRow| Some(row.key) == writer_waits;
        let writers: BTreeSet<i32> = self
            .rows
            .iter()
            .filter(is_writers)
            .map(|row| row.pid)
            .collect();
        self.rows.iter().filter_map(move |row| {
            let mode = if Some(row.key) == waits {
                Some(if writers.contains(&row.pid) {
                    Mode::Exclusive
                } else {
                    Mode::Shared
                })
            } else if row.key == self.permit_waits() {
                self.permit_mode()
            } else if row.granted {
                return None;
            } else {
                Some(self.mode(row)?)
            };
            Some(WaiterRef::new(mode, row.label()))
        })
    }
}

/// Returns the count of a semaphore, if `key` is the key of its count.
fn count(semaphore: &PermitKeys, key: AdvisoryKey) -> Option<NonZeroU32> {
    let AdvisoryKey::Int64(key) = key else {
        return None;
    };
    if key & !PermitKeys::COUNT != semaphore.any_count() {
        return None;
    }
    u32::try_from(key & PermitKeys::COUNT)
        .ok()
        .and_then(NonZeroU32::new)
}

fn permits(connector: &Connector, key: &LockKey, of: NonZeroU32) -> Result<Vec<AdvisoryKey>> {
    let permit_keys = connector.names.semaphore(key, of.get())?;
    Ok((1..=of.get())
        .map(|number| AdvisoryKey::Int64(permit_keys.permit(number)))
        .collect())
}

async fn look(
    connector: &Connector,
    connection: &mut PgConnection,
    keys: &[AdvisoryKey],
    count: i64,
) -> Result<Vec<PgLockRow>> {
    let bits: Vec<i64> = keys.iter().map(|key| key.bits()).collect();
    let pairs: Vec<bool> = keys.iter().map(|key| key.is_pair()).collect();
    let asked = sqlx::query(AssertSqlSafe(read_locks()))
        .bind(bits)
        .bind(pairs)
        .bind(count)
        .fetch_all(connection);
    let rows = connector
        .within(asked)
        .await?
        .map_err(|error| connector.map_error(error, "inspect"))?;
    rows.iter().map(|row| read(connector, row)).collect()
}

fn read(connector: &Connector, row: &PgRow) -> Result<PgLockRow> {
    let millis: Option<i64> = connector.read(row, 9)?;
    let seconds: Option<i64> = connector.read(row, 10)?;
    Ok(PgLockRow {
        key: AdvisoryKey::of_pg_locks(
            connector.read(row, 0)?,
            connector.read(row, 1)?,
            connector.read(row, 2)?,
        ),
        exclusive: connector.read(row, 3)?,
        granted: connector.read(row, 4)?,
        pid: connector.read(row, 5)?,
        name: connector.read(row, 6)?,
        address: connector.read(row, 7)?,
        started: connector.read::<Option<i64>, _>(row, 8)?.unwrap_or(0),
        silent: millis
            .and_then(|millis| u64::try_from(millis).ok())
            .map(Duration::from_millis),
        connected: seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs),
    })
}

impl PgLockRow {
    pub(crate) fn holder(&self, key: &LockKey, mode: Mode) -> HolderRef {
        let id = HolderId {
            pid: self.pid,
            started: self.started,
            key: self.key,
        };
        let mut holder = HolderRef::new(key.clone(), id.to_string());
        holder.mode = Some(mode);
        holder.label = self.label();
        holder.connection = Some(self.connection());
        if let (Some((ttl, _)), Some(silent)) = (parse_session_name(&self.name), self.silent) {
            holder.expires_in = Some(ttl.saturating_sub(silent));
        }
        holder
    }

    fn connection(&self) -> HolderConnection {
        let mut connection = HolderConnection::new(self.pid.to_string(), self.name.clone());
        connection.address = self
            .address
            .as_ref()
            .and_then(|address| address.parse().ok());
        let since = u64::try_from(self.started)
            .ok()
            .filter(|micros| *micros > 0);
        connection.since =
            since.map(|micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
        connection
    }

    /// Returns the label of a Leasehold session. For another program, returns its name, its address
    /// and the time since it connected.
    fn label(&self) -> String {
        if let Some((_, label)) = parse_session_name(&self.name) {
            return label.to_owned();
        }
        let mut label = if self.name.is_empty() {
            format!("pid {}", self.pid)
        } else {
            self.name.clone()
        };
        if let Some(address) = &self.address {
            label.push_str(&format!(" from {address}"));
        }
        if let Some(connected) = self.connected {
            label.push_str(&format!(", connected for {connected:?}"));
        }
        label
    }
}

/// The identity of a holder: its session, and the key that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HolderId {
    pub(crate) pid: i32,
    /// The start of the session, in microseconds since 1970. The server reuses pids.
    pub(crate) started: i64,
    pub(crate) key: AdvisoryKey,
}

impl fmt::Display for HolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.pid, self.started, self.key.payload())
    }
}

impl FromStr for HolderId {
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        let mut parts = id.splitn(3, ':');
        let mut next = || parts.next().ok_or(());
        let (pid, started, key) = (next()?, next()?, next()?);
        Ok(Self {
            pid: parse_exact(pid).ok_or(())?,
            started: parse_exact(started).ok_or(())?,
            key: AdvisoryKey::of_payload(key).ok_or(())?,
        })
    }
}

/// Returns the SQL that reads a session. Parameters: `$1` its pid; `$2` its start; `$3` a key; `$4`
/// whether the key is a pair; `$5` to `$7` the markers, and the bits of the keys of counts and of
/// the markers of records, that are not counted as other keys.
///
/// Returns one row: whether it holds the key; the number of its other keys; its role; whether the
/// current role may end it; and the current role.
fn read_session() -> String {
    let may_end = may_end(
        "us.usesysid",
        "a.usesysid",
        "(SELECT rolsuper FROM pg_roles WHERE oid = a.usesysid)",
    );
    format!(
        "SELECT coalesce(bool_or(is_key), false), \
         count(*) FILTER (WHERE NOT is_key \
         AND (is_pair OR key <> ALL ($5) AND {any_count} <> $6 AND {any_writer} <> $7)), \
         coalesce(min(role), ''), coalesce(bool_or(may_end), false), session_user::text \
         FROM (SELECT {LOCK_KEY} AS key, l.objsubid = 2 AS is_pair, \
         {LOCK_KEY} = $3 AND (l.objsubid = 2) = $4 AS is_key, \
         a.usename::text AS role, {may_end} AS may_end \
         FROM pg_stat_get_activity(pg_backend_pid()) AS us, \
         pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid \
         WHERE {IN_THIS_DATABASE} AND l.granted AND l.pid = $1 \
         AND coalesce({SESSION_START}, 0) = $2) AS held",
        any_count = without_count("key"),
        any_writer = without_writer("key")
    )
}

/// Returns the SQL that reads the holder of a key. Parameters: `$1` its pid; `$2` its start; `$3`
/// the key; `$4` whether the key is a pair; `$5` the revocation marker.
///
/// Returns the name of the session and whether it holds the marker, or no row if it no longer holds
/// the key.
fn read_holder() -> String {
    format!(
        "SELECT a.application_name, bool_or(l.objsubid = 1 AND {LOCK_KEY} = $5) \
         FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid \
         WHERE {IN_THIS_DATABASE} AND l.granted AND l.pid = $1 \
         AND coalesce({SESSION_START}, 0) = $2 GROUP BY a.application_name \
         HAVING bool_or((l.objsubid = 2) = $4 AND {LOCK_KEY} = $3)"
    )
}

/// Runs [`read_holder`].
async fn current_holder(
    connector: &Connector,
    connection: &mut PgConnection,
    id: HolderId,
) -> Result<Option<PgRow>> {
    let query = sqlx::query(AssertSqlSafe(read_holder()))
        .bind(id.pid)
        .bind(id.started)
        .bind(id.key.bits())
        .bind(id.key.is_pair())
        .bind(id.key.revocation_marker(id.pid));
    connector
        .within(query.fetch_optional(connection))
        .await?
        .map_err(|error| connector.map_error(error, "revoke"))
}

/// How often to check whether the holder has noted the revocation.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How often to check whether its session has ended, which usually takes less than a millisecond.
const END_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Holds the revocation marker until a renewal of the holder has noted it. From then on the
/// deadline of the lock does not advance.
///
/// It does not return earlier, because nothing else keeps the marker: it ends with this session,
/// and a program that revokes a lock may end at once.
async fn revoke_gracefully(
    connector: &Connector,
    connection: &mut PgConnection,
    id: HolderId,
) -> Result<RevokeOutcome> {
    let failed = |error| connector.map_error(error, "revoke");
    let mark = id.key.revocation_marker(id.pid);
    let identity = Identity::random();
    connector
        .within(connector.claim(&mut *connection, &identity, "revoke"))
        .await??;
    let take = AssertSqlSafe(format!(
        "SELECT pg_try_advisory_lock_shared({mark}) WHERE {}",
        identity.is_here()
    ));
    connector
        .within(sqlx::raw_sql(take).execute(&mut *connection))
        .await?
        .map_err(failed)?;
    let begun = Instant::now();
    loop {
        let Some(row) = current_holder(connector, connection, id).await? else {
            return Ok(RevokeOutcome::AlreadyGone);
        };
        let (name, noted): (String, bool) = (connector.read(&row, 0)?, connector.read(&row, 1)?);
        let Some((ttl, _)) = parse_session_name(&name) else {
            return Err(ERRORS.error(
                ErrorKind::Unsupported,
                "revoke",
                "another program holds it and would not notice; it can only be revoked at once",
            ));
        };
        if noted {
            return Ok(RevokeOutcome::FreeWithin(Some(ttl)));
        }
        // With many locks, not every renewal reads the markers.
        if begun.elapsed() > ttl * 3 / 2 {
            return Err(ERRORS.error(
                ErrorKind::Unavailable,
                "revoke",
                "its holder is alive but has not noted the revocation; is it an older version? Revoke it at once",
            ));
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Waits until a session that the server ends is gone, and its locks with it.
async fn wait_for_end(
    connector: &Connector,
    connection: &mut PgConnection,
    id: HolderId,
) -> Result<()> {
    while current_holder(connector, connection, id).await?.is_some() {
        tokio::time::sleep(END_CHECK_INTERVAL).await;
    }
    Ok(())
}

/// Revokes the lock of `holder`. A newer holder is never affected. An immediate revocation ends the
/// session, and waits until it is gone.
pub(crate) async fn revoke(
    connector: &Connector,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    let id: HolderId = std::str::from_utf8(&holder.id)
        .ok()
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| {
            ERRORS.error(
                ErrorKind::InvalidInput,
                "revoke",
                "this holder was not shown by an inspection of Postgres",
            )
        })?;
    let failed = |error| connector.map_error(error, "revoke");
    let mut connection = connector.connect("leasehold revokes", "revoke").await?;
    // These disappear with the lock: markers of waiters in the same session, the marker of a
    // graceful revocation, the key of the count of a semaphore, and the marker of the record.
    let semaphore = connector.names.semaphore(&holder.key, 1)?;
    let markers = vec![
        id.key.waiter_marker(),
        id.key.writer_marker(),
        semaphore.key().waiter_marker(),
        id.key.revocation_marker(id.pid),
    ];
    let query = sqlx::query(AssertSqlSafe(read_session()))
        .bind(id.pid)
        .bind(id.started)
        .bind(id.key.bits())
        .bind(id.key.is_pair())
        .bind(markers)
        .bind(semaphore.any_count())
        .bind(id.key.record_key().bits());
    let row = connector
        .within(query.fetch_one(&mut connection))
        .await?
        .map_err(failed)?;
    let (held, others): (bool, i64) = (connector.read(&row, 0)?, connector.read(&row, 1)?);
    if !held {
        return Ok(RevokeOutcome::AlreadyGone);
    }
    if !connector.read(&row, 3)? {
        let (whose, ours): (String, String) = (connector.read(&row, 2)?, connector.read(&row, 4)?);
        return Err(ERRORS.error(
            ErrorKind::Denied,
            "revoke",
            format!(
                "its session belongs to the role `{whose}`, whose sessions `{ours}` may not end; use a member of that role or \
                 of pg_signal_backend, or a superuser if `{whose}` is one"
            ),
        ));
    }
    if revocation == Revocation::Graceful {
        let revoked = revoke_gracefully(connector, &mut connection, id).await;
        drop(connection.close().await);
        return revoked;
    }
    if others > 0 {
        return Err(ERRORS.error(
            ErrorKind::Unsupported,
            "revoke",
            format!(
                "its session holds {others} other locks and markers, and the server frees all or none; run SELECT \
                 pg_terminate_backend({}) to free them all",
                id.pid
            ),
        ));
    }
    let query = sqlx::query("SELECT pg_terminate_backend($1)").bind(id.pid);
    connector
        .within(query.execute(&mut connection))
        .await?
        .map_err(failed)?;
    let ends = wait_for_end(connector, &mut connection, id);
    let outcome = match tokio::time::timeout(connector.config.timeout, ends).await {
        Ok(Ok(())) => RevokeOutcome::Freed,
        // The session has the signal, but nothing says when it ends.
        Ok(Err(_)) | Err(_) => RevokeOutcome::FreeWithin(None),
    };
    drop(connection.close().await);
    Ok(outcome)
}

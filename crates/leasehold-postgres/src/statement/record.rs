//! The SQL of records: the rows of one table, each beside a lock.
//!
//! A row is found by the name of the lock with its prefix and by its advisory key. So programs with
//! other key schemes, whose locks of this name are other locks, have other records.

use leasehold_core::Record;

use crate::{
    keys::RECORD_WRITER,
    statement::{
        Sql,
        fragments::{CHANNEL, IN_THIS_DATABASE, LOCK_KEY, in_database},
    },
};

/// The result of [`Sql::write_record`] if the session does not hold the lock.
pub(crate) const NOT_HELD: i64 = 0;
/// The result of [`Sql::write_record`] if the row has values that Leasehold does not write.
pub(crate) const FOREIGN: i64 = -1;
/// The result of [`Sql::write_record`] if another program changed the row at the same time.
pub(crate) const CHANGED: i64 = -2;

/// Returns the condition that the row `r` has values as [`Sql::write_record`] writes them. It is
/// never NULL.
fn is_record() -> String {
    format!(
        "coalesce(r.version > 0 AND r.version < {max} AND r.sequence > 0 AND r.owner IS NOT NULL \
         AND coalesce(r.token > 0, true) AND octet_length(r.label) <= {label} \
         AND coalesce(octet_length(r.value) <= {value}, true) \
         AND r.written >= timestamptz '1970-01-01 00:00:00+00' \
         AND r.written < timestamptz '9999-01-01 00:00:00+00', false)",
        max = i64::MAX,
        label = Record::MAX_LABEL_LEN,
        value = Record::MAX_LEN,
    )
}

/// Returns the SQL that reads a record. Parameters: `$1` the name; `$2` the key of the lock as
/// text; `$3` whether the record counts only while its writer holds the lock; `$4` the key of the
/// lock; `$5` its `objsubid`; `$6` the key under which watchers are notified.
///
/// Returns one row: whether there is a record, NULL if there is no row; version, sequence, owner,
/// token, label, value and time of the record; the time of the server; whether the record counts;
/// and whether the server is a standby. Times are in microseconds since 1970.
///
/// Both locks of a holder are read in one pass over `pg_locks`, which is consistent in itself.
pub(crate) fn read_record(table: &str) -> String {
    let micros = |time: &str| format!("(extract(epoch FROM {time}) * 1000000)::int8");
    format!(
        "SELECT r.is_record, r.version, r.sequence, r.owner, r.token, r.label, r.value, \
         CASE WHEN r.is_record THEN {written} END, {now}, \
         CASE WHEN $3 AND r.is_record THEN EXISTS (SELECT FROM pg_locks AS l \
         WHERE {IN_THIS_DATABASE} AND l.granted AND (l.mode = 'ExclusiveLock' \
         AND l.objsubid = $5 AND {LOCK_KEY} = $4 OR l.mode = 'ShareLock' AND l.objsubid = 1 \
         AND {LOCK_KEY} = ($6 | (('x' || right(r.owner, 5))::bit(20)::int8))) \
         GROUP BY l.pid HAVING count(*) = 2) ELSE true END, \
         pg_is_in_recovery() \
         FROM (SELECT $1::bytea AS name, $2::text AS lock_key) AS request \
         LEFT JOIN LATERAL (SELECT {is_record} AS is_record, r.version, r.sequence, \
         replace(r.owner::text, '-', '') AS owner, r.token, \
         CASE WHEN {is_record} THEN r.label END AS label, \
         CASE WHEN {is_record} THEN r.value END AS value, r.written \
         FROM {table} AS r \
         WHERE r.name = request.name AND r.lock_key = request.lock_key) AS r ON true",
        written = micros("r.written"),
        now = micros("clock_timestamp()"),
        is_record = is_record(),
    )
}

impl Sql {
    /// Writes a record. Parameters: `$1` the name; `$2` the key of the lock as text; `$3` the
    /// sequence; `$4` the owner; `$5` the token; `$6` the label; `$7` the value, NULL to clear;
    /// `$8` the oid of the database; `$9` the key of the lock; `$10` its `objsubid`; `$11` the
    /// marker of the record, NULL if the session holds it; `$12` the payload of the notification.
    ///
    /// Returns one row: the version of the record, [`NOT_HELD`], [`FOREIGN`] or [`CHANGED`]; the
    /// answer; and whether the statement has written.
    ///
    /// The lock cannot change hands while the statement is executed: it belongs to the session that
    /// executes the statement, and if the session ends, its transaction ends before its locks do.
    pub(super) fn write_record(&self, table: &str) -> String {
        let Self {
            is_here, answer, ..
        } = self;
        debug_assert_eq!(RECORD_WRITER.count_ones(), 20, "the reader reads 5 digits");
        format!(
            "WITH holder AS MATERIALIZED (SELECT {is_here} AND EXISTS (SELECT FROM pg_locks AS l \
             WHERE {in_database} AND l.pid = pg_backend_pid() AND l.granted \
             AND l.mode = 'ExclusiveLock' AND l.objsubid = $10::int2 AND {LOCK_KEY} = $9::int8) \
             AS holds), \
             written AS (INSERT INTO {table} AS r \
             (name, lock_key, version, sequence, owner, token, label, value, written) \
             SELECT $1::bytea, $2::text, 1, $3::int8, $4::text::uuid, $5::int8, $6::text, \
             $7::bytea, clock_timestamp() FROM holder WHERE holds \
             ON CONFLICT (name, lock_key) DO UPDATE SET version = r.version + 1, \
             sequence = excluded.sequence, owner = excluded.owner, token = excluded.token, \
             label = excluded.label, value = excluded.value, written = excluded.written \
             WHERE {is_record} AND (r.owner <> excluded.owner OR r.sequence < excluded.sequence) \
             RETURNING r.version) \
             SELECT CASE WHEN written.version IS NOT NULL \
             THEN CASE WHEN pg_notify('{CHANNEL}', $12::text)::text IS NOT NULL \
             AND ($11::int8 IS NULL OR pg_try_advisory_lock_shared($11) IS NOT NULL) \
             THEN written.version END \
             WHEN NOT holder.holds THEN {NOT_HELD} \
             ELSE coalesce((SELECT CASE WHEN NOT {is_record} THEN {FOREIGN} \
             WHEN r.owner = $4::text::uuid AND r.sequence >= $3 THEN r.version \
             ELSE {CHANGED} END FROM {table} AS r \
             WHERE r.name = $1 AND r.lock_key = $2), {CHANGED}) END, \
             {answer}, written.version IS NOT NULL \
             FROM holder LEFT JOIN written ON true",
            in_database = in_database("$8"),
            is_record = is_record(),
        )
    }
}

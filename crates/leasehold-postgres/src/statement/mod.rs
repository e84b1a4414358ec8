//! [`Statements`]: the SQL of sessions that hold locks.
//!
//! A batch is one statement with one row per [operation](Op), in order. `CASE` evaluates only the
//! branch of the row's operation, and a row is complete before the next one starts. Therefore a
//! token is drawn only after its lock was granted.
//!
//! Single operations on a 64-bit key, the usual case, have statements of their own. Unpacking
//! arrays and aggregating results costs the server as much as the lock itself (measured: 1.3 to 1.7
//! times as many acquire-release pairs with these statements).
//!
//! Tokens are durable before the server answers. `nextval` alone makes its transaction wait for the
//! disk only when it writes to the WAL, which is once in 32 values. In between it depends on a
//! record that another transaction may not have flushed yet. Therefore the statement compares the
//! end of the WAL with the flushed position after the last token was drawn. If a part is not
//! flushed, it emits an empty message into the WAL within the transaction, whose commit then
//! flushes everything before it. Some managed services refuse these functions. There tokens are not
//! flushed, and the capabilities report *best effort*.
//!
//! Every statement has an effect only on the backend of its session. One of its columns is the
//! [answer](crate::identity::Answerer), which proves that this backend executed it; see
//! [`Identity`].

mod batch;
mod fragments;
mod operation;
mod record;

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use self::{
    batch::Operations,
    fragments::{
        INT32_PAIR, INT64, after_clearing_markers, flushed, granted, in_database, is_not_silent,
        released, yielding,
    },
};
pub(crate) use self::{
    fragments::{
        CHANNEL, IN_THIS_DATABASE, LOCK_KEY, SESSION_START, SILENT_AFTER, may_end, without_count,
        without_writer,
    },
    operation::{DONE, Op, REFUSED, Row},
    record::{CHANGED, FOREIGN, NOT_HELD, read_record},
};
use crate::{identity::Identity, keys::PermitKeys};

/// The result of [`Statements::permit`] if the key of the count could not be acquired.
pub(crate) const COUNT_NOT_ACQUIRED: i64 = -1;
/// The result of [`Statements::permit`], less n, if permits with a count of n are held.
pub(crate) const OTHER_COUNT: i64 = -2;

/// The statements of one session. The methods of [`Sql`] say what each expects and returns.
#[derive(Clone, Debug)]
pub(crate) struct Statements {
    /// [`Op::Exclusive`]; see [`Sql::acquire`].
    pub(crate) acquire: SqlStr,
    /// [`Op::ExclusiveYielding`]; see [`Sql::acquire_yielding`].
    pub(crate) acquire_yielding: SqlStr,
    /// [`Op::ExclusiveOfWaiter`]; see [`Sql::acquire_of_waiter`].
    pub(crate) acquire_of_waiter: SqlStr,
    /// [`Op::Unlock`]; see [`Sql::release`].
    pub(crate) release: SqlStr,
    /// Rows without readers; see [`Sql::batch`].
    pub(crate) batch: SqlStr,
    /// All rows. The check for waiting writers costs the server as much as all the rest, because it
    /// is set up at each execution, used or not.
    pub(crate) batch_with_readers: SqlStr,
    /// Rows of which one belongs to a waiting reader. It also checks whether waiting writers are
    /// silent, which costs the server a fifth more (measured).
    pub(crate) batch_with_waiting_readers: SqlStr,
    /// See [`Sql::permit`].
    pub(crate) permit: SqlStr,
    /// See [`Sql::notify`].
    pub(crate) notify: SqlStr,
    /// See [`Sql::renew`].
    pub(crate) renew: SqlStr,
    /// See [`Sql::owned`].
    pub(crate) owned: SqlStr,
    /// See [`Sql::unlock`].
    pub(crate) unlock: SqlStr,
    /// See [`Sql::write_record`].
    pub(crate) write_record: SqlStr,
}

/// The properties of a server on which the statements depend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect<'a> {
    /// The quoted name of the sequence. Without it, every grant returns 1.
    pub(crate) sequence: Option<&'a str>,
    /// Whether the role may read and write the WAL.
    pub(crate) flushes: bool,
    /// Whether keys may be pairs.
    pub(crate) pairs: bool,
    /// The quoted name of the table of the records.
    pub(crate) records: &'a str,
}

impl Statements {
    pub(crate) fn new(dialect: Dialect<'_>, identity: &Identity) -> Self {
        let sql = Sql::new(dialect, identity);
        let text = |sql: String| AssertSqlSafe(Arc::<str>::from(sql)).into_sql_str();
        let operations = Operations::new(&sql.token, dialect.pairs);
        Self {
            acquire: text(sql.acquire()),
            acquire_yielding: text(sql.acquire_yielding()),
            acquire_of_waiter: text(sql.acquire_of_waiter()),
            release: text(sql.release()),
            batch: text(sql.batch(&operations.without_readers())),
            batch_with_readers: text(sql.batch(&operations.with_readers("true"))),
            batch_with_waiting_readers: text(sql.batch(&operations.with_readers(&is_not_silent()))),
            permit: text(sql.permit()),
            notify: text(sql.notify()),
            renew: text(sql.renew()),
            owned: text(sql.owned()),
            unlock: text(sql.unlock()),
            write_record: text(sql.write_record(dialect.records)),
        }
    }
}

/// The parts that all statements of a session have in common, and the statements.
struct Sql {
    /// The condition that the backend of the session executes the statement.
    is_here: String,
    /// The column with the answer.
    answer: String,
    /// The expression that draws a token.
    token: String,
    /// Whether tokens are flushed.
    flushes: bool,
}

/// The condition that the exclusive lock of a 64-bit key was acquired.
const ACQUIRED: &str = "pg_try_advisory_lock(key)";

impl Sql {
    fn new(dialect: Dialect<'_>, identity: &Identity) -> Self {
        let token = match dialect.sequence {
            // A literal of type `regclass`: looked up once, when the statement is prepared.
            Some(sequence) => format!("nextval('{}')", sequence.replace('\'', "''")),
            None => String::from("1"),
        };
        Self {
            is_here: identity.is_here(),
            answer: identity.answer(),
            token,
            flushes: dialect.flushes && dialect.sequence.is_some(),
        }
    }

    /// Returns the column that flushes the tokens of the statement.
    fn flushed(&self, drawn: &str, standby: &str) -> String {
        if self.flushes {
            flushed(drawn, standby)
        } else {
            String::from(standby)
        }
    }

    /// Acquires one lock. Parameters: `$1` the key; `$2` whether the token must reach a standby.
    ///
    /// Returns one row: the result, the answer, and whether the token was flushed.
    fn acquire(&self) -> String {
        self.acquire_if(ACQUIRED, &self.token, "$1::int8 AS key")
    }

    /// As [`acquire`](Self::acquire). `$3` is the marker of waiters.
    fn acquire_yielding(&self) -> String {
        self.acquire_if(
            &yielding(ACQUIRED),
            &self.token,
            "$1::int8 AS key, $3::int8 AS waiter_marker",
        )
    }

    /// As [`acquire`](Self::acquire). `$3` is the marker of waiters, `$4` that of waiting writers.
    fn acquire_of_waiter(&self) -> String {
        self.acquire_if(
            ACQUIRED,
            &after_clearing_markers(&self.token),
            "$1::int8 AS key, $3::int8 AS waiter_marker, $4::int8 AS beside",
        )
    }

    /// The token is drawn in a row of its own, which is complete before the other columns.
    fn acquire_if(&self, acquired: &str, token: &str, columns: &str) -> String {
        let Self {
            is_here, answer, ..
        } = self;
        let flushed = self.flushed("result > 0", "$2::bool");
        let result = granted(&format!("{is_here} AND {acquired}"), token);
        format!(
            "SELECT result, {answer}, {flushed} \
             FROM (SELECT ({result})::int8 AS result \
             FROM (SELECT {columns}) AS request) AS executed"
        )
    }

    /// Releases one lock. Parameters: `$1` the key; `$2` the marker of waiters.
    ///
    /// Returns one row: the result, and the answer.
    fn release(&self) -> String {
        let Self {
            is_here, answer, ..
        } = self;
        let result = released(
            &format!("{is_here} AND pg_advisory_unlock(key)"),
            "'b' || key",
            "'off'",
        );
        format!(
            "SELECT ({result})::int8, {answer} \
             FROM (SELECT $1::int8 AS key, $2::int8 AS waiter_marker) AS request"
        )
    }

    /// Executes rows. Parameters: `$1` the operations; `$2` the keys; `$3` the markers of waiters;
    /// `$4` the keys beside; `$5` whether tokens must reach a standby; `$6` the
    /// `synchronous_commit` of a commit that notifies; `$7`, with readers, the oid of the database.
    ///
    /// Returns one row: the array of results, the answer, and whether the tokens were flushed.
    ///
    /// The planner does not pull the rows up into the aggregates, because their functions are
    /// volatile. Columns beside the aggregates are evaluated after the last row.
    fn batch(&self, operations: &str) -> String {
        let Self {
            is_here, answer, ..
        } = self;
        let flushed = self.flushed("bool_or(result > 0)", "$5");
        format!(
            "SELECT array_agg(result), {answer}, {flushed} \
             FROM (SELECT ({operations})::int8 AS result \
             FROM unnest($1::int2[], $2::int8[], $3::int8[], $4::int8[]) \
             AS request(operation, key, waiter_marker, beside) WHERE {is_here}) AS executed"
        )
    }

    /// Acquires a permit. Parameters: `$1` the keys of the permits; `$2` the key of the count; `$3`
    /// the bits that the keys of all counts have in common; `$4` whether the key of the count must
    /// be acquired; `$5` the oid of the database.
    ///
    /// Returns one row: the result, and the answer. The result is the index in `$1` of the granted
    /// permit, from 1; [`REFUSED`]; [`COUNT_NOT_ACQUIRED`]; or [`OTHER_COUNT`] less the other
    /// count.
    ///
    /// It acquires the key of the count before it checks for other counts. Of two attempts with
    /// different counts at the same time, at least one sees the other. It then tries the permits in
    /// order until one is granted. If none is, it releases the key of the count.
    fn permit(&self) -> String {
        let Self {
            is_here, answer, ..
        } = self;
        let count_of = |key: &str| format!("({key} & {})", PermitKeys::COUNT);
        let other_count = format!(
            "SELECT min({OTHER_COUNT} - {held}) FROM pg_locks AS l WHERE {in_database} \
             AND l.objsubid = 1 AND l.granted AND {any_count} = $3 AND {held} <> {ours}",
            held = count_of("l.objid::int8"),
            ours = count_of("$2::int8"),
            in_database = in_database("$5"),
            any_count = without_count(LOCK_KEY),
        );
        format!(
            "SELECT CASE WHEN result = {COUNT_NOT_ACQUIRED} OR result > 0 OR NOT $4 THEN result \
             ELSE CASE WHEN pg_advisory_unlock_shared($2) IS NOT NULL THEN result END END, \
             {answer} \
             FROM (SELECT (CASE WHEN NOT {is_here} THEN {COUNT_NOT_ACQUIRED} \
             WHEN CASE WHEN $4 THEN NOT pg_try_advisory_lock_shared($2) ELSE false END \
             THEN {COUNT_NOT_ACQUIRED} \
             ELSE coalesce(({other_count}), \
             (SELECT permit.index FROM unnest($1::int8[]) WITH ORDINALITY AS permit(key, index) \
             WHERE pg_try_advisory_lock(permit.key) LIMIT 1), \
             {REFUSED}) END)::int8 AS result) AS executed"
        )
    }

    /// Notifies the waiters for keys that are free already. Parameters: `$1` the markers of
    /// waiters; `$2` the payloads.
    ///
    /// Returns one row: the number of keys, and the answer.
    fn notify(&self) -> String {
        let Self {
            is_here, answer, ..
        } = self;
        let result = released("true", "payload", "'off'");
        format!(
            "SELECT count(result), {answer} FROM (SELECT ({result})::int8 AS result \
             FROM unnest($1::int8[], $2::text[]) AS request(waiter_marker, payload) \
             WHERE {is_here}) AS executed"
        )
    }

    /// Restarts the idle time-out of the session. Returns one row: 0, and the answer.
    fn renew(&self) -> String {
        format!("SELECT 0::int8, {}", self.answer)
    }

    /// Reads the locks of this session, and revocation markers of other sessions. Parameters: `$1`
    /// the markers; `$2` the oid of the database.
    ///
    /// Returns one row per lock, and one with NULLs if there is none: `classid`, `objid`,
    /// `objsubid`, whether the lock is exclusive, whether it belongs to this session, and the
    /// answer.
    ///
    /// A marker counts only if the role that set it may end this session. The catalogue is read
    /// only if there is a marker, because reading it fails if the lock table is full.
    fn owned(&self) -> String {
        let Self { answer, .. } = self;
        let in_database = in_database("$2");
        let by_whom_may_end = may_end(
            "a.usesysid",
            "us.usesysid",
            "current_setting('is_superuser')::bool",
        );
        format!(
            "SELECT classid::int8, objid::int8, objsubid, mode = 'ExclusiveLock', \
             l.pid = pg_backend_pid(), {answer} \
             FROM (SELECT) AS one LEFT JOIN pg_locks AS l ON {in_database} AND granted \
             AND CASE WHEN l.pid = pg_backend_pid() THEN true \
             WHEN objsubid = 1 AND {LOCK_KEY} = ANY ($1::int8[]) THEN \
             (SELECT {by_whom_may_end} FROM pg_stat_get_activity(l.pid) AS a, \
             pg_stat_get_activity(pg_backend_pid()) AS us) \
             ELSE false END"
        )
    }

    /// Releases locks. Parameters: `$1` the keys; `$2` which are pairs; `$3` which are exclusive.
    ///
    /// Returns one row: whether all were held, and the answer.
    fn unlock(&self) -> String {
        let Self {
            is_here, answer, ..
        } = self;
        format!(
            "SELECT bool_and(was_held), {answer} FROM (SELECT CASE \
             WHEN is_pair AND exclusive THEN pg_advisory_unlock({INT32_PAIR}) \
             WHEN is_pair THEN pg_advisory_unlock_shared({INT32_PAIR}) \
             WHEN exclusive THEN pg_advisory_unlock({INT64}) \
             ELSE pg_advisory_unlock_shared({INT64}) END AS was_held \
             FROM unnest($1::int8[], $2::bool[], $3::bool[]) AS request(key, is_pair, exclusive) \
             WHERE {is_here}) AS executed"
        )
    }
}

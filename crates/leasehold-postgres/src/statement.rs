//! The SQL of sessions that hold locks.
//!
//! A batch is one statement with one row per operation, in order. `CASE` evaluates only the branch
//! of the row's operation, and a row is complete before the next one starts. Therefore a token is
//! drawn only after its lock was granted.
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
//! Every statement has an effect only on the backend of its session, and its column with the pid
//! proves which backend answered; see [`Identity`].
//!
//! The columns of a batch are `o`, the operation; `k`, the key; `w`, the marker of waiters; and
//! `x`, the key beside it.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::{identity::Identity, keys::AdvisoryKey};

/// The channel of the notifications.
pub(crate) const CHANNEL: &str = "leasehold";

/// The operation of a row, and its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Acquires exclusively. Returns a token, or 0 if refused.
    Exclusive,
    /// Releases. Returns -1, -2 if a waiter was notified, or 0 if the lock was not held.
    Unlock,
    /// Acquires shared, unless a writer waits. Returns a token, or 0 if refused.
    Shared,
    /// Releases a shared lock. Returns as `Unlock`.
    UnlockShared,
    /// As `Exclusive`. When granted, clears the two markers of the waiting writer.
    ExclusiveOfWaiter,
    /// As `Shared`. When granted, clears the marker of the waiter.
    SharedOfWaiter,
    /// As `Exclusive`, unless another session waits.
    ExclusiveYielding,
    /// As `Shared`, unless another session waits.
    SharedYielding,
    /// Adds a reader to a shared lock of this session, unless a writer waits. Returns -1, or 0 if
    /// refused.
    Join,
    /// Sets a marker. Returns -1, or 0 if another session is checking for it.
    SetMarker,
    /// Clears a marker.
    ClearMarker,
    /// Clears the marker of a waiting writer, and notifies the readers that waited behind it.
    ClearWriterMarker,
    /// Releases a permit, as `Unlock`, and notifies the waiters for its semaphore.
    UnlockPermit,
}

impl Op {
    /// Returns whether the operation acquires for a reader, which yields to waiting writers.
    pub(crate) fn reads(self) -> bool {
        matches!(
            self,
            Self::Shared | Self::SharedOfWaiter | Self::SharedYielding | Self::Join
        )
    }

    /// Returns whether the operation may draw a token.
    pub(crate) fn acquires(self) -> bool {
        use Op::{
            ClearMarker, ClearWriterMarker, Exclusive, ExclusiveOfWaiter, ExclusiveYielding, Join,
            SetMarker, Shared, SharedOfWaiter, SharedYielding, Unlock, UnlockPermit, UnlockShared,
        };
        match self {
            Exclusive | Shared | ExclusiveOfWaiter | SharedOfWaiter | ExclusiveYielding
            | SharedYielding => true,
            Unlock | UnlockShared | UnlockPermit | Join | SetMarker | ClearMarker
            | ClearWriterMarker => false,
        }
    }
}

/// One row: an operation, its key, and the keys beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) op: Op,
    pub(crate) key: AdvisoryKey,
    /// The marker of waiters.
    pub(crate) waits: i64,
    /// The marker of waiting writers, or the key of the semaphore of a permit.
    pub(crate) beside: i64,
}

/// The offset of operations on pairs in the numbering of operations.
const PAIRS: i16 = 100;

impl Row {
    /// Returns the number of the operation in SQL.
    pub(crate) fn code(&self) -> i16 {
        self.op as i16 + if self.key.is_pair() { PAIRS } else { 0 }
    }
}

/// The statements of one session. The column with the pid is the session's
/// [answer](crate::identity::Answerer).
#[derive(Clone, Debug)]
pub(crate) struct Statements {
    /// Executes [`Op::Exclusive`] on a 64-bit key. `$1` is the key, `$2` whether the token must
    /// reach a standby. Returns the result, the pid, and whether the token was flushed.
    pub(crate) acquire: SqlStr,
    /// Executes [`Op::ExclusiveYielding`] in the same way. `$3` is the marker of waiters.
    pub(crate) acquire_yielding: SqlStr,
    /// Executes [`Op::ExclusiveOfWaiter`] in the same way. `$3` is the marker of waiters, `$4` that
    /// of waiting writers.
    pub(crate) acquire_of_waiter: SqlStr,
    /// Executes [`Op::Unlock`] on a 64-bit key. `$1` is the key, `$2` the marker of waiters.
    /// Returns the result and the pid.
    pub(crate) release: SqlStr,
    /// Notifies the waiters for keys that are free already. `$1` are the markers of waiters, `$2`
    /// the payloads. Returns the number of rows and the pid.
    pub(crate) notify: SqlStr,
    /// Executes rows without readers. `$1` are the operations, `$2` the keys, `$3` the markers of
    /// waiters, `$4` the keys beside, `$5` whether tokens must reach a standby, `$6` the
    /// `synchronous_commit` of a commit that notifies. Returns the array of results, the pid, and
    /// whether the tokens were flushed.
    pub(crate) batch: SqlStr,
    /// Executes all rows in the same way. `$7` is the database. The check for waiting writers costs
    /// the server as much as all the rest, because it is set up at each execution, used or not.
    pub(crate) batch_with_readers: SqlStr,
    /// Executes rows of which one belongs to a waiting reader. It also checks whether waiting
    /// writers are silent, which costs the server a fifth more (measured).
    pub(crate) batch_with_waiting_readers: SqlStr,
    /// Acquires a permit. `$1` are the keys of the permits, `$2` the key of the count, `$3` the
    /// bits that the keys of all counts have in common, `$4` whether the key of the count must be
    /// acquired, `$5` the database. Returns the index in `$1` of the granted permit, from 1; 0 if
    /// none was granted; -1 if the key of the count could not be acquired; `-2 - n` if permits with
    /// a count of n are held. And the pid.
    pub(crate) permit: SqlStr,
    /// Restarts the idle time-out of the session. Returns 0 and the pid.
    pub(crate) renew: SqlStr,
    /// Reads the locks of this session, and the markers in `$1` that other sessions hold, in the
    /// database `$2`. Returns `classid`, `objid`, `objsubid`, whether the lock is exclusive,
    /// whether it belongs to this session, and the pid. There is at least one row.
    pub(crate) owned: SqlStr,
    /// Releases locks. `$1` are the keys, `$2` says which are pairs, `$3` which are exclusive.
    /// Returns whether all were held, and the pid.
    pub(crate) unlock: SqlStr,
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
}

/// Returns the SQL condition that no other session holds the marker in the column `marker`.
fn is_free_of_others(marker: &str) -> String {
    format!(
        "(CASE WHEN pg_try_advisory_lock({marker}) THEN pg_advisory_unlock({marker}) ELSE false END)"
    )
}

/// The time after which waiting readers no longer yield to a waiting writer whose session is
/// silent. The writer is stopped or cut off, and the server ends its session only after the TTL.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Returns the condition that the session of `l.pid` is not known to be silent. A role sees its own
/// sessions; `pg_read_all_stats` shows all of them.
fn not_silent() -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_stat_get_activity(l.pid) AS a WHERE a.state = 'idle' \
         AND a.state_change < clock_timestamp() - interval '{} s')",
        SILENT_AFTER.as_secs()
    )
}

/// Returns the SQL condition that no other session for which `whom` holds has set the marker.
/// Unlike in [`is_free_of_others`], sessions that check the marker at the same time do not count.
fn no_writer(marker: &str, whom: &str) -> String {
    format!(
        "(CASE WHEN pg_try_advisory_lock({marker}) THEN pg_advisory_unlock({marker}) \
         ELSE NOT EXISTS (SELECT FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
         AND l.mode = 'ShareLock' AND l.pid <> pg_backend_pid() \
         AND l.database::int8 = $7 \
         AND l.classid::int8 = (({marker} >> 32) & 4294967295) AND l.objid::int8 = ({marker} & 4294967295) \
         AND {whom}) END)"
    )
}

/// Returns `take`, on condition that no other session waits.
fn yielding(take: &str) -> String {
    format!("{} AND {take}", is_free_of_others("w"))
}

/// Returns the SQL of a token after a grant, and of 0 otherwise.
fn granted(granted: &str, token: &str) -> String {
    format!("CASE WHEN {granted} THEN {token} ELSE 0 END")
}

/// Returns the SQL that releases and notifies the waiters, if there are any. `commit` is the
/// `synchronous_commit` of a commit that notifies.
fn unlock(unlocked: &str, payload: &str, commit: &str) -> String {
    format!(
        "CASE WHEN {unlocked} THEN CASE WHEN {} THEN -1 \
         WHEN set_config('synchronous_commit', {commit}, true) IS NOT NULL AND pg_notify('{CHANNEL}', {payload})::text IS NOT NULL \
         THEN -2 END ELSE 0 END",
        is_free_of_others("w")
    )
}

/// Returns the SQL that flushes the tokens that were drawn if `drawn`. `standby` says whether they
/// must reach a standby.
fn flushed(drawn: &str, standby: &str) -> String {
    format!(
        "CASE WHEN {drawn} AND ({standby} OR pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()) \
         THEN pg_logical_emit_message(true, '{CHANNEL}', '') IS NOT NULL END"
    )
}

/// Returns the SQL that evaluates `first`, then `then`.
fn first_then(first: &str, then: &str) -> String {
    format!("CASE WHEN {first} IS NOT NULL THEN {then} END")
}

/// Returns the SQL that clears the marker of a waiter, then evaluates `then`.
fn without_marker(then: &str) -> String {
    first_then("pg_advisory_unlock_shared(w)", then)
}

/// Returns the SQL that clears both markers of a waiting writer, then evaluates `then`.
fn without_markers(then: &str) -> String {
    first_then("pg_advisory_unlock_shared(x)", &without_marker(then))
}

/// The branches of `CASE o`.
#[derive(Default)]
struct Operations {
    others: String,
    readers: String,
    /// The codes of the operations of readers.
    reading: Vec<String>,
}

/// Adds the branches for the keys of one space. The branches of readers assume that no writer
/// waits.
fn branches(operations: &mut Operations, from: i16, key: &str, space: char, token: &str) {
    let unlock = |unlocked: &str, payload: &str| unlock(unlocked, payload, "$6");
    let exclusive = format!("pg_try_advisory_lock({key})");
    let shared = format!("pg_try_advisory_lock_shared({key})");
    let payload = format!("'{space}' || k");
    let mut branch = |op: Op, then: String| {
        let code = op as i16 + from;
        let branches = if op.reads() {
            &mut operations.readers
        } else {
            &mut operations.others
        };
        branches.push_str(&format!(" WHEN {code} THEN {then}"));
        if op.reads() {
            operations.reading.push(code.to_string());
        }
    };
    branch(Op::Exclusive, granted(&exclusive, token));
    branch(
        Op::Unlock,
        unlock(&format!("pg_advisory_unlock({key})"), &payload),
    );
    branch(Op::Shared, granted(&shared, token));
    branch(
        Op::UnlockShared,
        unlock(&format!("pg_advisory_unlock_shared({key})"), &payload),
    );
    branch(
        Op::ClearWriterMarker,
        unlock("pg_advisory_unlock_shared(x)", &payload),
    );
    branch(
        Op::ExclusiveOfWaiter,
        granted(&exclusive, &without_markers(token)),
    );
    branch(Op::SharedOfWaiter, granted(&shared, &without_marker(token)));
    branch(Op::ExclusiveYielding, granted(&yielding(&exclusive), token));
    branch(Op::SharedYielding, granted(&yielding(&shared), token));
    branch(Op::Join, "-1".into());
    if space == 'b' {
        branch(
            Op::SetMarker,
            granted("pg_try_advisory_lock_shared(k)", "-1"),
        );
        branch(
            Op::ClearMarker,
            granted("pg_advisory_unlock_shared(k)", "-1"),
        );
        branch(
            Op::UnlockPermit,
            unlock("pg_advisory_unlock(k)", "'b' || x"),
        );
    }
}

/// Returns the SQL that acquires a permit.
///
/// It acquires the key of the count before it checks for other counts. Of two attempts with
/// different counts at the same time, at least one sees the other. It then tries the permits in
/// order until one is granted.
fn permit(here: &str, answer: &str) -> String {
    format!(
        "SELECT CASE WHEN r IN (-1) OR r > 0 OR NOT $4 THEN r \
         ELSE CASE WHEN pg_advisory_unlock_shared($2) IS NOT NULL THEN r END END, {answer} FROM (SELECT (CASE \
         WHEN NOT {here} THEN -1 \
         WHEN CASE WHEN $4 THEN NOT pg_try_advisory_lock_shared($2) ELSE false END THEN -1 \
         ELSE coalesce(\
         (SELECT min(-2 - (l.objid::int8 & 1048575)) FROM pg_locks AS l \
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
         AND l.database::int8 = $5 \
         AND ((l.classid::int8 << 32) | l.objid::int8) & ~1048575::int8 = $3 \
         AND (l.objid::int8 & 1048575) <> ($2::int8 & 1048575)), \
         (SELECT u.i FROM unnest($1::int8[]) WITH ORDINALITY AS u(p, i) WHERE pg_try_advisory_lock(u.p) LIMIT 1), \
         0) END)::int8 AS r) AS s"
    )
}

/// Returns the SQL that reads the locks of the session and revocation markers.
///
/// A marker counts only if the role that set it may end this session. The catalogue is read only if
/// there is a marker, because reading it fails if the lock table is full.
fn owned(answer: &str) -> String {
    format!(
        "SELECT classid::int8, objid::int8, objsubid, mode = 'ExclusiveLock', l.pid = pg_backend_pid(), {answer} \
         FROM (SELECT) AS one LEFT JOIN pg_locks AS l ON locktype = 'advisory' AND granted AND database::int8 = $2 \
         AND CASE WHEN l.pid = pg_backend_pid() THEN true \
         WHEN objsubid = 1 AND (classid::int8 << 32 | objid::int8) = ANY ($1::int8[]) THEN \
         (SELECT {} FROM pg_stat_get_activity(l.pid) AS a, pg_stat_get_activity(pg_backend_pid()) AS us) \
         ELSE false END",
        may_end(
            "a.usesysid",
            "us.usesysid",
            "current_setting('is_superuser')::bool"
        )
    )
}

/// Returns the SQL condition that a session of the role `by` may end one of the role `whose`, by
/// the rule of `pg_terminate_backend`. `is_super` says whether the latter is a superuser's. NULL
/// counts as no.
pub(crate) fn may_end(by: &str, whose: &str, is_super: &str) -> String {
    format!(
        "pg_has_role({by}, {whose}, 'USAGE') OR NOT {is_super} AND pg_has_role({by}, 'pg_signal_backend', 'USAGE')"
    )
}

/// Returns the SQL that releases locks.
fn unlock_all(here: &str, answer: &str) -> String {
    format!(
        "SELECT bool_and(u), {answer} FROM (SELECT CASE \
         WHEN p AND e THEN pg_advisory_unlock((k >> 32)::int4, ((k << 32) >> 32)::int4) \
         WHEN p THEN pg_advisory_unlock_shared((k >> 32)::int4, ((k << 32) >> 32)::int4) \
         WHEN e THEN pg_advisory_unlock(k) ELSE pg_advisory_unlock_shared(k) END AS u \
         FROM unnest($1::int8[], $2::bool[], $3::bool[]) AS j(k, p, e) WHERE {here}) AS s"
    )
}

impl Statements {
    pub(crate) fn new(dialect: Dialect<'_>, identity: &Identity) -> Self {
        let Dialect {
            sequence,
            flushes,
            pairs,
        } = dialect;
        let (here, answer) = (identity.is_here(), identity.answer());
        let token = match sequence {
            // A literal of type `regclass`: looked up once, when the statement is prepared.
            Some(sequence) => format!("nextval('{}')", sequence.replace('\'', "''")),
            None => String::from("1"),
        };
        let mut operations = Operations::default();
        branches(&mut operations, 0, "k", 'b', &token);
        if pairs {
            branches(
                &mut operations,
                PAIRS,
                "(k >> 32)::int4, ((k << 32) >> 32)::int4",
                'p',
                &token,
            );
        }
        let Operations {
            others,
            readers,
            reading,
        } = operations;
        let others = format!("CASE o{others} END");
        let all = |whom: &str| {
            format!(
                "CASE WHEN o IN ({}) THEN CASE WHEN {} THEN CASE o{readers} END ELSE 0 END ELSE {others} END",
                reading.join(", "),
                no_writer("x", whom)
            )
        };
        let flushed = |drawn: &str, standby: &str| match sequence {
            Some(_) if flushes => flushed(drawn, standby),
            _ => String::from(standby),
        };
        let of_batch = flushed("bool_or(r > 0)", "$5");
        // The planner does not pull the rows up into the aggregates, because their functions are
        // volatile. Columns beside the aggregates are evaluated after the last row.
        let batch = |operations: &str| {
            format!(
                "SELECT array_agg(r), {answer}, {of_batch} FROM (SELECT ({operations})::int8 AS r \
                 FROM unnest($1::int2[], $2::int8[], $3::int8[], $4::int8[]) AS j(o, k, w, x) WHERE {here}) AS s"
            )
        };
        // The token is drawn in a row of its own, which is complete before the other columns.
        let take = |given: &str, take: &str, token: &str| {
            format!(
                "SELECT r, {answer}, {} FROM (SELECT ({})::int8 AS r FROM (SELECT {given}) AS j) AS s",
                flushed("r > 0", "$2::bool"),
                granted(&format!("{here} AND {take}"), token)
            )
        };
        let exclusive = "pg_try_advisory_lock(k)";
        let release = format!(
            "SELECT ({})::int8, {answer} FROM (SELECT $1::int8 AS k, $2::int8 AS w) AS j",
            unlock(
                &format!("{here} AND pg_advisory_unlock(k)"),
                "'b' || k",
                "'off'"
            )
        );
        let notify = format!(
            "SELECT count(r), {answer} FROM (SELECT ({})::int8 AS r \
             FROM unnest($1::int8[], $2::text[]) AS j(w, t) WHERE {here}) AS s",
            unlock("true", "t", "'off'")
        );
        let text = |sql: String| AssertSqlSafe(Arc::<str>::from(sql)).into_sql_str();
        Self {
            acquire: text(take("$1::int8 AS k", exclusive, &token)),
            acquire_yielding: text(take(
                "$1::int8 AS k, $3::int8 AS w",
                &yielding(exclusive),
                &token,
            )),
            acquire_of_waiter: text(take(
                "$1::int8 AS k, $3::int8 AS w, $4::int8 AS x",
                exclusive,
                &without_markers(&token),
            )),
            release: text(release),
            notify: text(notify),
            batch: text(batch(&others)),
            batch_with_readers: text(batch(&all("true"))),
            batch_with_waiting_readers: text(batch(&all(&not_silent()))),
            permit: text(permit(&here, &answer)),
            renew: text(format!("SELECT 0::int8, {answer}")),
            owned: text(owned(&answer)),
            unlock: text(unlock_all(&here, &answer)),
        }
    }
}

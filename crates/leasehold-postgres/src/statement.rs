//! The SQL of the holding sessions.
//!
//! A gathered statement has one row per operation, in order: `CASE` evaluates only the branch that
//! is asked for, and a row is done before the next begins. So a token is drawn after its lock was
//! granted, and only then.
//!
//! Who takes or gives back one key alone, the usual case, or takes the one it waited for, has
//! statements of their own: to unpack arrays and to gather results costs the server as much as the
//! lock itself (measured: 1.3 to 1.7 times as many pairs without).
//!
//! The tokens are durable before the server answers. `nextval` itself makes its transaction wait
//! for the disk only when it logs, which is once in 32 values; in between it relies on a record
//! that another transaction may not have flushed yet. So after the last token was drawn the log's
//! end is compared with what is flushed, and if anything is missing an empty message goes into the
//! log within the transaction: its commit then flushes everything before it. Some managed services
//! refuse these functions; there the tokens are not flushed, and the capabilities say *best
//! effort*.
//!
//! Every statement has an effect only on the backend of its session, and its column of the pid says
//! so; see [`Identity`].

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::{identity::Identity, keys::AdvisoryKey};

/// The channel of the wake-ups.
pub(crate) const CHANNEL: &str = "leasehold";

/// What a row does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Takes it exclusively: a token, or 0.
    Exclusive,
    /// Gives it back: -1, -2 if a waiter was told, or 0 if it was not held.
    Unlock,
    /// Takes it shared, unless a writer waits: a token, or 0.
    Shared,
    /// Gives it back, as `Unlock`.
    UnlockShared,
    /// As `Exclusive`; once granted, takes the markers of the waiting writer away.
    ExclusiveOfWaiter,
    /// As `Shared`; once granted, takes the waiter's sign away.
    SharedOfWaiter,
    /// As `Exclusive`, unless somebody else waits.
    ExclusiveCourteous,
    /// As `Shared`, unless somebody else waits.
    SharedCourteous,
    /// One more reader of those in this session, unless a writer waits: -1, or 0.
    Join,
    /// Puts a sign up: -1, or 0 if somebody looks for it just now.
    Sign,
    /// Takes a sign down.
    Unsign,
    /// Takes a waiting writer's sign down, and tells the readers that waited behind it.
    UnsignWriter,
    /// Gives a permit back, as `Unlock`, and tells those who wait for its semaphore.
    UnlockPermit,
}

impl Op {
    /// Whether it is for readers, who heed writers that wait.
    pub(crate) fn reads(self) -> bool {
        matches!(
            self,
            Self::Shared | Self::SharedOfWaiter | Self::SharedCourteous | Self::Join
        )
    }

    /// Whether a token may be drawn.
    pub(crate) fn takes(self) -> bool {
        use Op::{
            Exclusive, ExclusiveCourteous, ExclusiveOfWaiter, Join, Shared, SharedCourteous,
            SharedOfWaiter, Sign, Unlock, UnlockPermit, UnlockShared, Unsign, UnsignWriter,
        };
        match self {
            Exclusive | Shared | ExclusiveOfWaiter | SharedOfWaiter | ExclusiveCourteous
            | SharedCourteous => true,
            Unlock | UnlockShared | UnlockPermit | Join | Sign | Unsign | UnsignWriter => false,
        }
    }
}

/// One row: what it does, to which key, and the keys beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) op: Op,
    pub(crate) key: AdvisoryKey,
    /// The waiters' sign.
    pub(crate) waits: i64,
    /// The waiting writers' sign; of a permit, its semaphore.
    pub(crate) beside: i64,
}

/// Where a row's pair begins in the numbering of operations.
const PAIRS: i16 = 100;

impl Row {
    pub(crate) fn code(&self) -> i16 {
        self.op as i16 + if self.key.is_pair() { PAIRS } else { 0 }
    }
}

/// The texts of one session. What they return as the pid is the session's
/// [answer](crate::identity::Answerer).
#[derive(Clone, Debug)]
pub(crate) struct Statements {
    /// A key of 64 bits alone, as [`Op::Exclusive`]: `$1` the key, `$2` whether the token must
    /// reach a standby. The result, the pid, and whether it was flushed.
    pub(crate) take: SqlStr,
    /// The same as [`Op::ExclusiveCourteous`]: `$3` the waiters' sign.
    pub(crate) take_courteously: SqlStr,
    /// The same as [`Op::ExclusiveOfWaiter`]: `$3` the waiters' sign, `$4` the waiting writers'.
    pub(crate) take_waited_for: SqlStr,
    /// A key of 64 bits alone, as [`Op::Unlock`]: `$1` the key, `$2` the waiters' sign. The result,
    /// and the pid.
    pub(crate) give_back: SqlStr,
    /// What a release says to waiters, of what is free already: `$1` the waiters' markers, `$2`
    /// what they are told. The number, and the pid.
    pub(crate) tell: SqlStr,
    /// `$1` operations, `$2` keys, `$3` waiters' markers, `$4` keys beside, `$5` whether the tokens
    /// must reach a standby, `$6` how a commit that notifies waits: one row of results, pid, and
    /// whether it was flushed. For rows without readers.
    pub(crate) batch: SqlStr,
    /// The same for all rows; `$7` the database. The look for writers that wait costs the server as
    /// much as all the rest, because it is set up at each execution, taken or not.
    pub(crate) batch_with_readers: SqlStr,
    /// The same if a row is of a reader that waits. It also checks whether the waiting writers are
    /// silent, which costs the server a fifth more (measured).
    pub(crate) batch_with_waiting_readers: SqlStr,
    /// `$1` permits to try, `$2` the count's key, `$3` what the keys of all counts have in common,
    /// `$4` whether the count's key is still to be taken, `$5` the database: which of `$1` was
    /// granted, from 1; 0 if none; -1 if the count's key could not be taken; or `-2 - n` if
    /// somebody has permits with a count of n. And the pid.
    pub(crate) permit: SqlStr,
    /// Nothing, which the server takes for a sign of life. And the pid.
    pub(crate) renew: SqlStr,
    /// What this session has, and which of `$1` others have, in the database `$2`: `classid`,
    /// `objid`, `objsubid`, whether exclusively, and whether it is this session. And the pid, in at
    /// least one row.
    pub(crate) owned: SqlStr,
    /// Gives back what it names: `$1` keys, `$2` which are pairs, `$3` which are exclusive. Whether
    /// all were held, and the pid.
    pub(crate) unlock: SqlStr,
}

/// What the texts depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect<'a> {
    /// Quoted; without it every grant counts as 1.
    pub(crate) sequence: Option<&'a str>,
    /// Whether the server lets us see and write its log.
    pub(crate) flushes: bool,
    /// Whether keys may be pairs.
    pub(crate) pairs: bool,
}

/// What `bool` says of the sign in column `sign`: held by nobody but this session.
fn nobody(sign: &str) -> String {
    format!(
        "(CASE WHEN pg_try_advisory_lock({sign}) THEN pg_advisory_unlock({sign}) ELSE false END)"
    )
}

/// Registration readers no longer yield to a waiting writer whose session was silent for this long.
/// It is stopped or cut off, and the server ends its session only after the TTL.
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

/// As [`nobody`], but others who look at the same time do not count; and of the others only `whom`.
fn no_writer(sign: &str, whom: &str) -> String {
    format!(
        "(CASE WHEN pg_try_advisory_lock({sign}) THEN pg_advisory_unlock({sign}) \
         ELSE NOT EXISTS (SELECT FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
         AND l.mode = 'ShareLock' AND l.pid <> pg_backend_pid() \
         AND l.database::int8 = $7 \
         AND l.classid::int8 = (({sign} >> 32) & 4294967295) AND l.objid::int8 = ({sign} & 4294967295) \
         AND {whom}) END)"
    )
}

/// Takes it unless somebody else waits.
fn yielding(take: &str) -> String {
    format!("{} AND {take}", nobody("w"))
}

/// What follows a grant, or does not.
fn granted(granted: &str, token: &str) -> String {
    format!("CASE WHEN {granted} THEN {token} ELSE 0 END")
}

/// Gives back, and tells the waiters if there are any; `commit` is how a commit that notifies
/// waits.
fn unlock(unlocked: &str, told: &str, commit: &str) -> String {
    format!(
        "CASE WHEN {unlocked} THEN CASE WHEN {} THEN -1 \
         WHEN set_config('synchronous_commit', {commit}, true) IS NOT NULL AND pg_notify('{CHANNEL}', {told})::text IS NOT NULL \
         THEN -2 END ELSE 0 END",
        nobody("w")
    )
}

/// Whether what was drawn for `drawn` had to be flushed, and was; `standby` says that it must reach
/// a standby.
fn flushed(drawn: &str, standby: &str) -> String {
    format!(
        "CASE WHEN {drawn} AND ({standby} OR pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()) \
         THEN pg_logical_emit_message(true, '{CHANNEL}', '') IS NOT NULL END"
    )
}

/// Evaluates the first, then the second.
fn first_then(first: &str, then: &str) -> String {
    format!("CASE WHEN {first} IS NOT NULL THEN {then} END")
}

/// Takes the waiter's sign down, then `then`.
fn without_sign(then: &str) -> String {
    first_then("pg_advisory_unlock_shared(w)", then)
}

/// Takes both markers of a waiting writer down, then `then`.
fn without_signs(then: &str) -> String {
    first_then("pg_advisory_unlock_shared(x)", &without_sign(then))
}

/// `WHEN` after `WHEN` of `CASE o`.
#[derive(Default)]
struct Operations {
    others: String,
    readers: String,
    /// The codes of the latter.
    reading: Vec<String>,
}

/// Adds what each operation does to keys of one space; those of readers, once it is known that no
/// writer waits.
fn branches(operations: &mut Operations, from: i16, key: &str, space: char, token: &str) {
    let unlock = |unlocked: &str, told: &str| unlock(unlocked, told, "$6");
    let exclusive = format!("pg_try_advisory_lock({key})");
    let shared = format!("pg_try_advisory_lock_shared({key})");
    let told = format!("'{space}' || k");
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
        unlock(&format!("pg_advisory_unlock({key})"), &told),
    );
    branch(Op::Shared, granted(&shared, token));
    branch(
        Op::UnlockShared,
        unlock(&format!("pg_advisory_unlock_shared({key})"), &told),
    );
    branch(
        Op::UnsignWriter,
        unlock("pg_advisory_unlock_shared(x)", &told),
    );
    branch(
        Op::ExclusiveOfWaiter,
        granted(&exclusive, &without_signs(token)),
    );
    branch(Op::SharedOfWaiter, granted(&shared, &without_sign(token)));
    branch(
        Op::ExclusiveCourteous,
        granted(&yielding(&exclusive), token),
    );
    branch(Op::SharedCourteous, granted(&yielding(&shared), token));
    branch(Op::Join, "-1".into());
    if space == 'b' {
        branch(Op::Sign, granted("pg_try_advisory_lock_shared(k)", "-1"));
        branch(Op::Unsign, granted("pg_advisory_unlock_shared(k)", "-1"));
        branch(
            Op::UnlockPermit,
            unlock("pg_advisory_unlock(k)", "'b' || x"),
        );
    }
}

/// The count's key first, then the look for other counts: of two that come with different counts at
/// the same time, at least one sees the other. The permits are tried one after the other until one
/// is granted.
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

/// A mark counts only if who set it may end this session. Nothing here reads the catalogue before
/// there is a mark: where the lock table is full, that fails.
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
            // As a literal of type `regclass`: looked up once, when the statement is prepared.
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
        // The rows are not pulled up into the aggregates, because their functions are volatile; and
        // what stands beside the aggregates is evaluated when the last row is done.
        let batch = |operations: &str| {
            format!(
                "SELECT array_agg(r), {answer}, {of_batch} FROM (SELECT ({operations})::int8 AS r \
                 FROM unnest($1::int2[], $2::int8[], $3::int8[], $4::int8[]) AS j(o, k, w, x) WHERE {here}) AS s"
            )
        };
        // As there: what draws a token is a row of its own, done before anything is said about it.
        let take = |given: &str, take: &str, token: &str| {
            format!(
                "SELECT r, {answer}, {} FROM (SELECT ({})::int8 AS r FROM (SELECT {given}) AS j) AS s",
                flushed("r > 0", "$2::bool"),
                granted(&format!("{here} AND {take}"), token)
            )
        };
        let exclusive = "pg_try_advisory_lock(k)";
        let give_back = format!(
            "SELECT ({})::int8, {answer} FROM (SELECT $1::int8 AS k, $2::int8 AS w) AS j",
            unlock(
                &format!("{here} AND pg_advisory_unlock(k)"),
                "'b' || k",
                "'off'"
            )
        );
        let tell = format!(
            "SELECT count(r), {answer} FROM (SELECT ({})::int8 AS r \
             FROM unnest($1::int8[], $2::text[]) AS j(w, t) WHERE {here}) AS s",
            unlock("true", "t", "'off'")
        );
        let text = |sql: String| AssertSqlSafe(Arc::<str>::from(sql)).into_sql_str();
        Self {
            take: text(take("$1::int8 AS k", exclusive, &token)),
            take_courteously: text(take(
                "$1::int8 AS k, $3::int8 AS w",
                &yielding(exclusive),
                &token,
            )),
            take_waited_for: text(take(
                "$1::int8 AS k, $3::int8 AS w, $4::int8 AS x",
                exclusive,
                &without_signs(&token),
            )),
            give_back: text(give_back),
            tell: text(tell),
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

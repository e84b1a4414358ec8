//! The SQL fragments that several statements share.
//!
//! A fragment is an expression. Those about an operation read the columns of its row: `key`,
//! `waiter_marker` and `beside`.

use std::time::Duration;

use crate::{
    keys::{PermitKeys, RECORD_WRITER},
    statement::operation::{DONE, NOTIFIED, REFUSED},
};

/// The channel of the notifications.
pub(crate) const CHANNEL: &str = "leasehold";

/// The arguments of a lock function for the column `key`, if it is a 64-bit key.
pub(super) const INT64: &str = "key";
/// The arguments of a lock function for the column `key`, if it is a pair.
pub(super) const INT32_PAIR: &str = "(key >> 32)::int4, ((key << 32) >> 32)::int4";

/// Reads the key of the row `l` of `pg_locks` as one number.
pub(crate) const LOCK_KEY: &str = "((l.classid::int8 << 32) | l.objid::int8)";
/// Reads the start of the session `a` of `pg_stat_activity`, in microseconds since 1970. It is NULL
/// if the role may not see it.
pub(crate) const SESSION_START: &str = "(extract(epoch FROM a.backend_start) * 1000000)::int8";
/// The condition that the row `l` of `pg_locks` is an advisory lock in this database. Sessions that
/// hold locks compare with an oid that they read once, because reading the catalogue fails if the
/// lock table is full.
pub(crate) const IN_THIS_DATABASE: &str = "l.locktype = 'advisory' \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Returns the condition that the row `l` of `pg_locks` is an advisory lock in the database whose
/// oid is the parameter.
pub(super) fn in_database(parameter: &str) -> String {
    format!("l.locktype = 'advisory' AND l.database::int8 = {parameter}")
}

/// Returns the part of a key that is the same for all counts of a semaphore; see
/// [`PermitKeys::any_count`].
pub(crate) fn without_count(key: &str) -> String {
    format!("{key} & ~{}::int8", PermitKeys::COUNT)
}

/// Returns the part of a key that is the same for all markers of the record beside a lock; see
/// [`AdvisoryKey::record_marker`](crate::keys::AdvisoryKey::record_marker).
pub(crate) fn without_writer(key: &str) -> String {
    format!("{key} & ~{RECORD_WRITER}::int8")
}

/// Returns the condition that a session of the role `by` may end one of the role `whose`, by the
/// rule of `pg_terminate_backend`. `is_super` says whether the latter is a superuser's. NULL counts
/// as no.
pub(crate) fn may_end(by: &str, whose: &str, is_super: &str) -> String {
    format!(
        "pg_has_role({by}, {whose}, 'USAGE') \
         OR NOT {is_super} AND pg_has_role({by}, 'pg_signal_backend', 'USAGE')"
    )
}

/// Returns the condition that no other session holds the marker in this column. It takes the marker
/// for a moment.
pub(super) fn is_free_of_others(marker: &str) -> String {
    format!(
        "(CASE WHEN pg_try_advisory_lock({marker}) THEN pg_advisory_unlock({marker}) \
         ELSE false END)"
    )
}

/// The time after which waiting readers no longer yield to a waiting writer whose session is
/// silent. The writer is stopped or cut off, and the server ends its session only after the TTL.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Returns the condition that the session of the row `l` of `pg_locks` is not known to be silent. A
/// role sees its own sessions; `pg_read_all_stats` shows all of them.
pub(super) fn is_not_silent() -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_stat_get_activity(l.pid) AS a WHERE a.state = 'idle' \
         AND a.state_change < clock_timestamp() - interval '{} s')",
        SILENT_AFTER.as_secs()
    )
}

/// Returns the condition that no other session has set the marker of a waiting writer, which is in
/// the column `beside`. Only sessions count for which `counts` holds. `database` is the parameter
/// with the oid of the database.
///
/// Unlike in [`is_free_of_others`], sessions that check the marker at the same time do not count.
pub(super) fn no_writer_waits(counts: &str, database: &str) -> String {
    format!(
        "(CASE WHEN pg_try_advisory_lock(beside) THEN pg_advisory_unlock(beside) \
         ELSE NOT EXISTS (SELECT FROM pg_locks AS l WHERE {} \
         AND l.objsubid = 1 AND l.granted AND l.mode = 'ShareLock' AND l.pid <> pg_backend_pid() \
         AND l.classid::int8 = ((beside >> 32) & 4294967295) \
         AND l.objid::int8 = (beside & 4294967295) \
         AND {counts}) END)",
        in_database(database)
    )
}

/// Returns the condition that no other session waits and that `acquired` holds.
pub(super) fn yielding(acquired: &str) -> String {
    format!("{} AND {acquired}", is_free_of_others("waiter_marker"))
}

/// Returns `token` if `acquired` holds, and otherwise [`REFUSED`].
pub(super) fn granted(acquired: &str, token: &str) -> String {
    format!("CASE WHEN {acquired} THEN {token} ELSE {REFUSED} END")
}

/// Returns the value that notifies the waiters if `released` holds and there are any: [`DONE`],
/// [`NOTIFIED`], or [`REFUSED`] if the lock was not held. `commit` is the `synchronous_commit` of a
/// commit that notifies.
pub(super) fn released(released: &str, payload: &str, commit: &str) -> String {
    format!(
        "CASE WHEN {released} THEN CASE WHEN {no_waiter} THEN {DONE} \
         WHEN {notified} THEN {NOTIFIED} END ELSE {REFUSED} END",
        no_waiter = is_free_of_others("waiter_marker"),
        notified = notified(payload, commit)
    )
}

/// Returns the condition that notifies, which always holds. `commit` is the `synchronous_commit` of
/// the commit.
pub(super) fn notified(payload: &str, commit: &str) -> String {
    format!(
        "set_config('synchronous_commit', {commit}, true) IS NOT NULL \
         AND pg_notify('{CHANNEL}', {payload})::text IS NOT NULL"
    )
}

/// Returns `value`, after `first` was evaluated.
fn after(first: &str, value: &str) -> String {
    format!("CASE WHEN {first} IS NOT NULL THEN {value} END")
}

/// Returns `value`, after the marker of a waiter was cleared.
pub(super) fn after_clearing_marker(value: &str) -> String {
    after("pg_advisory_unlock_shared(waiter_marker)", value)
}

/// Returns `value`, after both markers of a waiting writer were cleared.
pub(super) fn after_clearing_markers(value: &str) -> String {
    after(
        "pg_advisory_unlock_shared(beside)",
        &after_clearing_marker(value),
    )
}

/// Returns the value that flushes the tokens that were drawn if `drawn` holds. `standby` says
/// whether they must reach a standby.
pub(super) fn flushed(drawn: &str, standby: &str) -> String {
    format!(
        "CASE WHEN {drawn} \
         AND ({standby} OR pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()) \
         THEN pg_logical_emit_message(true, '{CHANNEL}', '') IS NOT NULL END"
    )
}

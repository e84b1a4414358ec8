//! [`Identity`]: the proof that a backend of the server is ours, on every statement.
//!
//! A lock in session scope belongs to the backend that took it. A pooler in transaction mode lends each transaction any backend, so
//! a statement may reach a backend that is not ours, or ours may be lent to somebody else. No question at one moment
//! excludes that for the next. So nothing rests on a check that was made earlier:
//!
//! 1. A connection *claims* its backend before it does anything else: one statement that writes a random number into the setting
//!    `leasehold.session`, unless the backend has such a number or any advisory lock already.
//! 2. Each later statement of the connection has an effect only if it runs on a backend with this very number, and otherwise
//!    only reports that. The first such report ends the session.
//!
//! A backend runs one statement at a time. So, whatever backends a pooler lends in whatever order: what a session takes is on a
//! backend that it claimed, and no second session claims that backend while a lock of the first is on it. Two sessions
//! that are granted conflicting locks would have been granted them on two backends, between which the server's lock table excludes.
//! A pooler that resets a backend takes the locks and the number away together, and the next statement or renewal reports it.
//!
//! The number is in a setting because reading it costs a statement nothing that can be measured. The setting is known to nobody
//! else and changes nothing for whoever is lent the backend. All other settings are written only where the number is.

use std::fmt;

use leasehold_core::OwnerId;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// What [`Identity::answer`] says instead of the pid.
pub(crate) const IN_RECOVERY: i32 = 0;
const NOT_OURS: i32 = -1;

/// The random number of one connection.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Identity(String);

/// What the server said about who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// Our backend, of this pid.
    Ours(i32),
    /// The server has become a standby, which grants locks that exclude nobody.
    Standby,
    /// A backend that is not ours.
    Another,
}

impl Answerer {
    pub(crate) fn of(answer: i32) -> Self {
        match answer {
            IN_RECOVERY => Self::Standby,
            NOT_OURS => Self::Another,
            pid => Self::Ours(pid),
        }
    }
}

impl Identity {
    pub(crate) fn random() -> Self {
        Self(OwnerId::random().to_string())
    }

    /// Claims the backend that runs it: one row with the [answer](Answerer). A simple query, because a pooler may lend
    /// another backend between the preparation and the execution of a statement.
    pub(crate) fn claim(&self) -> SqlStr {
        let Self(number) = self;
        AssertSqlSafe(format!(
            "SELECT CASE WHEN pg_is_in_recovery() THEN {IN_RECOVERY} \
             WHEN coalesce(current_setting('leasehold.session', true), '') <> '' \
             OR EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) THEN {NOT_OURS} \
             WHEN set_config('leasehold.session', '{number}', false) = '{number}' THEN pg_backend_pid() \
             ELSE {NOT_OURS} END"
        ))
        .into_sql_str()
    }

    /// In SQL, whether the backend that runs it is ours and may still grant locks: what has an effect stands behind it. Never NULL,
    /// behind which `AND` goes on.
    pub(crate) fn is_here(&self) -> String {
        format!(
            "(NOT pg_is_in_recovery() AND coalesce(current_setting('leasehold.session', true) = '{}', false))",
            self.0
        )
    }

    /// In SQL, the [answer](Answerer): the column of every statement that proves its other columns.
    pub(crate) fn answer(&self) -> String {
        format!(
            "CASE WHEN {} THEN pg_backend_pid() WHEN pg_is_in_recovery() THEN {IN_RECOVERY} ELSE {NOT_OURS} END",
            self.is_here()
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0)
    }
}

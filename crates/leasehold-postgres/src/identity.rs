//! [`Identity`]: the proof, in every statement, that a backend of the server is ours.
//!
//! A lock in session scope belongs to the backend that took it. A pooler in transaction mode lends
//! any of its backends to each transaction. So a statement may reach a backend that is not ours,
//! and ours may be lent to somebody else. A check at one moment proves nothing about the next
//! statement. Therefore nothing rests on an earlier check:
//!
//! 1. A connection *claims* its backend first. One statement writes a random number into the
//!    setting `leasehold.session`, unless the backend has such a number or any advisory lock.
//! 2. Every later statement of the connection has an effect only on a backend with this very
//!    number. Elsewhere it only reports that, and the first such report ends the session.
//!
//! A backend runs one statement at a time. So the following holds for every order in which a pooler
//! lends its backends. A session takes locks only on backends that it claimed. No second session
//! claims a backend while a lock of the first is on it. Two sessions that hold conflicting locks
//! would hold them on two backends, which the server's lock table prevents. A pooler that resets a
//! backend removes locks and number together, and the next statement or renewal of the session
//! reports it.
//!
//! The number is in a setting because a statement reads a setting within a microsecond. No other
//! program reads this one, so it changes nothing for a later user of the backend. All other
//! settings are written only where the number is.

use std::fmt;

use leasehold_core::AcquisitionId;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The values of [`Identity::answer`] in place of the pid.
pub(crate) const IN_RECOVERY: i32 = 0;
const NOT_OURS: i32 = -1;

/// The random number with which one connection claims its backend.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Identity(String);

/// Which backend answered a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// Our backend, of this pid.
    Ours(i32),
    /// The server has become a standby. It shares no locks with the primary.
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
        Self(AcquisitionId::random().to_string())
    }

    /// Returns the query that claims the backend that runs it. Its only column is the
    /// [answer](Answerer). Send it as a simple query: a pooler may lend another backend between the
    /// preparation and the execution of a prepared statement.
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

    /// Returns the SQL condition that the backend is ours and may still grant locks. Every effect
    /// depends on it. It is never NULL, because `NULL AND f()` calls `f`.
    pub(crate) fn is_here(&self) -> String {
        format!(
            "(NOT pg_is_in_recovery() AND coalesce(current_setting('leasehold.session', true) = '{}', false))",
            self.0
        )
    }

    /// Returns the SQL of the [answer](Answerer), the column that proves the other columns of a
    /// row.
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

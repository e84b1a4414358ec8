//! Locks inside of a transaction of your own: `pg_advisory_xact_lock` with the keys of the leases.
//!
//! Prefer them where all that the lock protects is in this database and fits into one transaction:
//! the lock and the writes then end in one instant. There is no lease that could expire in between,
//! so no fencing token is needed. A lease is right where the work is longer than a transaction
//! should be, or touches anything else.
//!
//! They exclude the leases of the same key and are excluded by them. A lease that waits for a
//! transaction learns of its end by its own look, at each
//! [`fallback_poll_interval`](crate::PostgresConfig::fallback_poll_interval); a transaction that
//! waits for a lease is in the server's own queue, at the cost of one connection and one snapshot.
//!
//! Two transactions that each wait for what the other has locked are in a deadlock, also where one
//! of the two waits for a row. After its `deadlock_timeout` the server ends one of the waits with
//! an error, [`ErrorKind::Unavailable`]: roll that transaction back, so that the other can go on,
//! and run it again. Who take their locks in the same order have none. The server sees no deadlock
//! of which a lease is a part: use [`lock_timeout`] where you hold one.
//!
//! ```no_run
//! use leasehold_postgres::{AdvisoryKey, KeyScheme, sqlx::PgPool, transaction};
//!
//! # async fn example(pool: PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let item = KeyScheme::Hash.key_of(b"item/42")?; // as `mutex("item/42")`; with a prefix: b"shop:item/42"
//! let mut sale = pool.begin().await?;
//! transaction::lock(&mut sale, item).await?;
//! leasehold_postgres::sqlx::query("UPDATE stock SET left = left - 1 WHERE item = 42").execute(&mut *sale).await?;
//! sale.commit().await?; // frees the lock with the write
//! # Ok(()) }
//! ```

use std::time::Duration;

use leasehold_core::{ErrorKind, Result};
use sqlx::{Acquire, PgConnection, PgTransaction};

use crate::{
    error::{self, LOCK_NOT_AVAILABLE, has_code},
    keys::AdvisoryKey,
};

/// Locks exclusively until the end of the transaction; waits for as long as it takes, or the role's
/// `lock_timeout`.
///
/// # Errors
/// [`ErrorKind::Unavailable`] after the role's `lock_timeout`, or if the server ended the wait to
/// resolve a deadlock, and as the server fails. The transaction is then aborted, as after any
/// error: it can only be rolled back and run again.
///
/// # Cancel safety
/// Dropped while it waits, the server goes on waiting until the transaction is dropped too, and its
/// connection closed or used.
pub async fn lock(transaction: &mut PgTransaction<'_>, key: AdvisoryKey) -> Result<()> {
    wait(transaction, key, false).await
}

/// As [`lock`], shared with others who lock shared.
///
/// # Errors
/// As [`lock`].
///
/// # Cancel safety
/// As [`lock`].
pub async fn lock_shared(transaction: &mut PgTransaction<'_>, key: AdvisoryKey) -> Result<()> {
    wait(transaction, key, true).await
}

/// Locks exclusively until the end of the transaction if it can be done at once; whether it was.
///
/// # Errors
/// As the server fails.
///
/// # Cancel safety
/// Dropped half-way, the lock may be held until the end of the transaction.
pub async fn try_lock(transaction: &mut PgTransaction<'_>, key: AdvisoryKey) -> Result<bool> {
    attempt(transaction, key, false).await
}

/// As [`try_lock`], shared with others who lock shared.
///
/// # Errors
/// As [`try_lock`].
///
/// # Cancel safety
/// As [`try_lock`].
pub async fn try_lock_shared(
    transaction: &mut PgTransaction<'_>,
    key: AdvisoryKey,
) -> Result<bool> {
    attempt(transaction, key, true).await
}

/// As [`lock`], but waits for at most `timeout`. Returns whether it was locked. The transaction
/// goes on in either case: it waits behind a savepoint. The role's `lock_timeout` holds again
/// afterwards.
///
/// # Errors
/// [`ErrorKind::Unavailable`] as for [`lock`], and as the server fails.
///
/// # Cancel safety
/// As [`lock`].
pub async fn lock_timeout(
    transaction: &mut PgTransaction<'_>,
    key: AdvisoryKey,
    timeout: Duration,
) -> Result<bool> {
    // 0 would mean no limit, and the server takes whole milliseconds up to 31 bits.
    let millis = timeout.as_millis().clamp(1, i32::MAX as u128).to_string();
    let failed = |error| error::of_driver(error, "acquire", SERVER);
    let mut behind = transaction.begin().await.map_err(failed)?;
    let before: String = sqlx::query_scalar("SELECT current_setting('lock_timeout')")
        .fetch_one(&mut *behind)
        .await
        .map_err(failed)?;
    set_lock_timeout(&mut behind, &millis)
        .await
        .map_err(failed)?;
    match run(&mut behind, statement(key, false), key).await {
        Ok(()) => {
            set_lock_timeout(&mut behind, &before)
                .await
                .map_err(failed)?;
            behind.commit().await.map_err(failed)?;
            Ok(true)
        }
        Err(error) if has_code(&error, LOCK_NOT_AVAILABLE) => {
            // Which sets the time-out back too.
            behind.rollback().await.map_err(failed)?;
            Ok(false)
        }
        Err(error) => Err(failed(error)),
    }
}

/// What the errors call it: only its owner knows where the connection leads.
const SERVER: &str = "the server";

async fn set_lock_timeout(connection: &mut PgConnection, timeout: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config('lock_timeout', $1, true)")
        .bind(timeout)
        .execute(connection)
        .await
        .map(drop)
}

async fn wait(transaction: &mut PgTransaction<'_>, key: AdvisoryKey, shared: bool) -> Result<()> {
    match run(transaction, statement(key, shared), key).await {
        Err(error) if has_code(&error, LOCK_NOT_AVAILABLE) => {
            let message = "the role's lock_timeout was over before the lock was free";
            Err(error::plain(ErrorKind::Unavailable, "acquire", message).with_source(error))
        }
        waited => waited.map_err(|error| error::of_driver(error, "acquire", SERVER)),
    }
}

fn statement(key: AdvisoryKey, shared: bool) -> &'static str {
    match (key, shared) {
        (AdvisoryKey::Int64(_), false) => "SELECT pg_advisory_xact_lock($1)",
        (AdvisoryKey::Int64(_), true) => "SELECT pg_advisory_xact_lock_shared($1)",
        (AdvisoryKey::Int32Pair(..), false) => "SELECT pg_advisory_xact_lock($1, $2)",
        (AdvisoryKey::Int32Pair(..), true) => "SELECT pg_advisory_xact_lock_shared($1, $2)",
    }
}

async fn run(
    connection: &mut PgConnection,
    statement: &'static str,
    key: AdvisoryKey,
) -> Result<(), sqlx::Error> {
    let query = match key {
        AdvisoryKey::Int64(key) => sqlx::query(statement).bind(key),
        AdvisoryKey::Int32Pair(first, second) => sqlx::query(statement).bind(first).bind(second),
    };
    query.execute(connection).await.map(drop)
}

async fn attempt(connection: &mut PgConnection, key: AdvisoryKey, shared: bool) -> Result<bool> {
    let (first, second) = match key {
        AdvisoryKey::Int64(key) => (key, 0),
        AdvisoryKey::Int32Pair(first, second) => (first.into(), second),
    };
    let query = match (key, shared) {
        (AdvisoryKey::Int64(_), false) => {
            sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(first)
        }
        (AdvisoryKey::Int64(_), true) => {
            sqlx::query_scalar("SELECT pg_try_advisory_xact_lock_shared($1)").bind(first)
        }
        (AdvisoryKey::Int32Pair(..), false) => {
            sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1::int8::int4, $2)")
                .bind(first)
                .bind(second)
        }
        (AdvisoryKey::Int32Pair(..), true) => {
            sqlx::query_scalar("SELECT pg_try_advisory_xact_lock_shared($1::int8::int4, $2)")
                .bind(first)
                .bind(second)
        }
    };
    query
        .fetch_one(connection)
        .await
        .map_err(|error| error::of_driver(error, "acquire", SERVER))
}

//! Locks inside your own transactions: `pg_advisory_xact_lock` with the keys of the leases.
//!
//! Prefer them if everything that the lock protects is in this database and fits into one
//! transaction. The lock then ends together with the writes. No lease can expire in between, so no
//! fencing token is needed. Use a lease if the work takes longer than a transaction should, or
//! affects anything else.
//!
//! These locks and the leases of the same key exclude each other. A lease that waits for a
//! transaction notices its end by polling, at each
//! [`fallback_poll_interval`](crate::PostgresConfig::fallback_poll_interval). A transaction that
//! waits for a lease is in the queue of the server, and occupies one connection and one snapshot.
//!
//! Two transactions that each wait for a lock or a row of the other are in a deadlock. After its
//! `deadlock_timeout`, the server ends one of the waits with [`ErrorKind::Unavailable`]. Roll that
//! transaction back, so that the other can continue, and run it again. Transactions that lock in
//! the same order have no deadlocks. The server cannot detect a deadlock that involves a lease: use
//! [`lock_timeout`] while you hold one.
//!
//! ```no_run
//! use leasehold_postgres::{AdvisoryKey, KeyScheme, sqlx::PgPool, transaction};
//!
//! # async fn example(pool: PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! // The key of `mutex("item/42")`. With a prefix: b"shop:item/42".
//! let item = KeyScheme::Hash.key_of(b"item/42")?;
//! let mut sale = pool.begin().await?;
//! transaction::lock(&mut sale, item).await?;
//! let update = "UPDATE stock SET left = left - 1 WHERE item = 42";
//! leasehold_postgres::sqlx::query(update).execute(&mut *sale).await?;
//! sale.commit().await?; // releases the lock with the write
//! # Ok(()) }
//! ```

use std::time::Duration;

use leasehold_core::{ErrorKind, Result};
use sqlx::{Acquire, PgConnection, PgTransaction};

use crate::{
    error::{self, ERRORS, LOCK_NOT_AVAILABLE, has_code},
    keys::AdvisoryKey,
};

/// Locks exclusively until the end of the transaction. Waits without a limit, except for the role's
/// `lock_timeout`.
///
/// # Errors
/// [`ErrorKind::Unavailable`] after the role's `lock_timeout`, or if the server ended the wait to
/// resolve a deadlock. Other kinds report other errors of the server. After any error the
/// transaction is aborted: roll it back and run it again.
///
/// # Cancel safety
/// Not safe. If the future is dropped, the server continues to wait until the transaction is
/// dropped as well and its connection is closed or used.
pub async fn lock(transaction: &mut PgTransaction<'_>, key: AdvisoryKey) -> Result<()> {
    wait(transaction, key, false).await
}

/// Locks shared until the end of the transaction. Waits as [`lock`] does.
///
/// # Errors
/// Those of [`lock`].
///
/// # Cancel safety
/// Not safe, as [`lock`].
pub async fn lock_shared(transaction: &mut PgTransaction<'_>, key: AdvisoryKey) -> Result<()> {
    wait(transaction, key, true).await
}

/// Locks exclusively until the end of the transaction, if the lock is free. Returns whether it was
/// acquired.
///
/// # Errors
/// Those of the server.
///
/// # Cancel safety
/// Not safe. If the future is dropped, the lock may be held until the end of the transaction.
pub async fn try_lock(transaction: &mut PgTransaction<'_>, key: AdvisoryKey) -> Result<bool> {
    attempt(transaction, key, false).await
}

/// Locks shared until the end of the transaction, if no other session holds the lock exclusively.
/// Returns whether it was acquired.
///
/// # Errors
/// Those of [`try_lock`].
///
/// # Cancel safety
/// Not safe, as [`try_lock`].
pub async fn try_lock_shared(
    transaction: &mut PgTransaction<'_>,
    key: AdvisoryKey,
) -> Result<bool> {
    attempt(transaction, key, true).await
}

/// Locks exclusively until the end of the transaction, and waits for at most `timeout`. Returns
/// whether the lock was acquired.
///
/// The transaction stays usable in either case, because the wait is behind a savepoint. Afterwards
/// the role's `lock_timeout` applies again.
///
/// # Errors
/// Those of [`lock`], except for the time-out.
///
/// # Cancel safety
/// Not safe, as [`lock`].
pub async fn lock_timeout(
    transaction: &mut PgTransaction<'_>,
    key: AdvisoryKey,
    timeout: Duration,
) -> Result<bool> {
    // 0 would mean no limit. The server accepts whole milliseconds of up to 31 bits.
    let millis = timeout.as_millis().clamp(1, i32::MAX as u128).to_string();
    let failed = |error| error::from_driver(error, "acquire", SERVER);
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
            // The rollback also restores the time-out.
            behind.rollback().await.map_err(failed)?;
            Ok(false)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The name of the server in errors. Its address is unknown here.
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
            let message = "the role's lock_timeout passed before the lock was free";
            Err(ERRORS
                .error(ErrorKind::Unavailable, "acquire", message)
                .with_source(error))
        }
        waited => waited.map_err(|error| error::from_driver(error, "acquire", SERVER)),
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
        .map_err(|error| error::from_driver(error, "acquire", SERVER))
}

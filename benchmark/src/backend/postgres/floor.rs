//! The floor: one open connection with Leasehold's own statements.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, PoisonError},
};

use leasehold_integration::{HarnessError, Result};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgListener},
};
use tokio::{
    sync::{Mutex, Notify},
    task::JoinHandle,
};

use crate::{
    scenario::Scenario,
    subject::{FLOOR, Lock, Locks, Source},
};

const CHANNEL: &str = "floor";

/// Leasehold's statement that acquires one key. After drawing a token, it flushes the log up to it
/// unless that has already happened.
const TAKE: &str = "SELECT r, pg_backend_pid(), \
    CASE WHEN r > 0 AND pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() \
    THEN pg_logical_emit_message(true, 'floor', '') IS NOT NULL END \
    FROM (SELECT (CASE WHEN pg_try_advisory_lock(k) THEN nextval('floor_tokens') ELSE 0 END)::int8 AS r \
    FROM (SELECT $1::int8 AS k, $2::int8 AS w) AS j) AS s";

/// Leasehold's statement that releases one key.
const GIVE_BACK: &str = "SELECT (CASE WHEN pg_advisory_unlock(k) THEN CASE \
    WHEN CASE WHEN pg_try_advisory_lock(w) THEN pg_advisory_unlock(w) ELSE false END THEN -1 \
    WHEN pg_notify('floor', 'b' || k)::text IS NOT NULL THEN -2 END ELSE 0 END)::int8, pg_backend_pid(), NULL::bool \
    FROM (SELECT $1::int8 AS k, $2::int8 AS w) AS j";

/// The part of Leasehold's batch statement that acquires for a waiter.
const TAKE_AS_WAITER: &str = "SELECT r, pg_backend_pid(), \
    CASE WHEN r > 0 AND pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() \
    THEN pg_logical_emit_message(true, 'floor', '') IS NOT NULL END \
    FROM (SELECT (CASE WHEN pg_try_advisory_lock(k) \
    THEN CASE WHEN pg_advisory_unlock_shared(w) IS NOT NULL THEN nextval('floor_tokens') END ELSE 0 END)::int8 AS r \
    FROM (SELECT $1::int8 AS k, $2::int8 AS w) AS j) AS s";
const SIGN: &str = "SELECT (CASE WHEN pg_try_advisory_lock_shared(w) THEN -1 ELSE 0 END)::int8, pg_backend_pid(), \
    NULL::bool FROM (SELECT $1::int8 AS k, $2::int8 AS w) AS j";

/// Leasehold's statements over the bare driver, each sent alone and immediately, on one connection
/// behind a mutex:
///
/// - an acquisition tries the lock and draws a durable token. A refused one sets a waiter marker
///   and tries again at each notification of the lock;
/// - a release unlocks, and notifies if there is a waiter marker.
///
/// There is no deadline, renewal, queue, batching or cleanup.
pub(super) struct Floor(pub(super) String);

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        // A crowd without a local queue is a stampede, and this floor does not renew leases
        // individually.
        matches!(
            scenario,
            Scenario::Pair | Scenario::Handoff | Scenario::Counter
        )
    }

    async fn open(&self) -> Result<FloorLocks> {
        let options: PgConnectOptions = self.0.parse().map_err(failed)?;
        let mut connection = PgConnection::connect_with(&options).await.map_err(failed)?;
        let create =
            "SET client_min_messages = warning; CREATE SEQUENCE IF NOT EXISTS floor_tokens";
        // Both processes of a hand-off may create it at the same time. One of them then fails, and
        // the object exists.
        drop(sqlx::raw_sql(create).execute(&mut connection).await);
        let mut ear = PgListener::connect(&self.0).await.map_err(failed)?;
        ear.listen(CHANNEL).await.map_err(failed)?;
        let wakes = Wakes::default();
        let listening = tokio::spawn(listen(ear, wakes.clone()));
        Ok(FloorLocks {
            connection: Arc::new(Mutex::new(connection)),
            wakes,
            listening,
        })
    }
}

/// The waiters to notify of a release, by key.
type Wakes = Arc<std::sync::Mutex<HashMap<String, Arc<Notify>>>>;

async fn listen(mut ear: PgListener, wakes: Wakes) {
    while let Ok(told) = ear.recv().await {
        if let Some(notify) = wakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(told.payload())
        {
            notify.notify_one();
        }
    }
}

pub(super) struct FloorLocks {
    connection: Arc<Mutex<PgConnection>>,
    wakes: Wakes,
    listening: JoinHandle<()>,
}

pub(super) struct FloorLock {
    connection: Arc<Mutex<PgConnection>>,
    released: Arc<Notify>,
    key: i64,
    sign: i64,
}

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        let (key, sign) = (hash("lock", name), hash("sign", name));
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        let released = Arc::clone(wakes.entry(format!("b{key}")).or_default());
        FloorLock {
            connection: Arc::clone(&self.connection),
            released,
            key,
            sign,
        }
    }

    async fn renew(&self, _held: &()) -> Result<()> {
        Err(HarnessError::new(
            "the floor of PostgreSQL is not measured with leases that are held",
        ))
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        self.listening.abort();
        match Arc::into_inner(self.connection) {
            Some(connection) => connection.into_inner().close().await.map_err(failed),
            None => Ok(()),
        }
    }
}

impl FloorLock {
    async fn run(&self, statement: &'static str) -> Result<i64> {
        let mut connection = self.connection.lock().await;
        let query = sqlx::query_as(statement).bind(self.key).bind(self.sign);
        let (result, _pid, _flushed): (i64, i32, Option<bool>) =
            query.fetch_one(&mut *connection).await.map_err(failed)?;
        Ok(result)
    }
}

impl Lock for FloorLock {
    type Held = ();

    async fn acquire(&mut self) -> Result<()> {
        if self.run(TAKE).await? > 0 {
            return Ok(());
        }
        while self.run(SIGN).await? == 0 {}
        while self.run(TAKE_AS_WAITER).await? == 0 {
            self.released.notified().await;
        }
        Ok(())
    }

    async fn release(&mut self, (): ()) -> Result<()> {
        match self.run(GIVE_BACK).await? {
            0 => Err(HarnessError::new(
                "the floor released a lock that it did not hold",
            )),
            _ => Ok(()),
        }
    }
}

fn hash(kind: &str, name: &str) -> i64 {
    let mut hasher = DefaultHasher::new();
    ("floor", kind, name).hash(&mut hasher);
    hasher.finish().cast_signed()
}

fn failed(error: sqlx::Error) -> HarnessError {
    HarnessError::caused_by("the bare driver failed", error)
}

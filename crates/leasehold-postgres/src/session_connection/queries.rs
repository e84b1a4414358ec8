//! The queries of a [`SessionConnection`]. Each sends one of its
//! [`Statements`](crate::statement::Statements) and reads the answer.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use leasehold_core::{Error, ErrorKind, Result, backend::support::contained, session as claims};
use sqlx::{
    Connection, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout;

use crate::{
    connection::Connector,
    error::{self, ERRORS, Limit},
    identity::Answerer,
    job::{AcquireJob, AcquisitionKey, Answer, Job, JobResult},
    keys::{AdvisoryKey, PermitKeys},
    session_connection::{Failure, HeldLock, RowPurpose, SessionConnection, StatementBatch},
    statement::{OTHER_COUNT, Op, Row},
};

/// The number of attempts to notify waiters. An administrator may cancel the first one.
const NOTIFY_ATTEMPTS: usize = 2;

/// An advisory lock that the server shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owned {
    key: AdvisoryKey,
    exclusive: bool,
    /// Whether this session holds it.
    ours: bool,
}

impl SessionConnection {
    /// Executes the rows in one statement. Returns one result for each row.
    pub(super) async fn execute_rows(
        &mut self,
        connector: &Connector,
        rows: &[Row],
    ) -> Result<Vec<i64>, Failure> {
        if let [row] = rows
            && let Some(query) = self.single(row)
        {
            let row = self.fetch_one(connector, "acquire", query).await?;
            return self.read(&row).map(|result| vec![result]);
        }
        let operations: Vec<i16> = rows.iter().map(Row::code).collect();
        let keys: Vec<i64> = rows.iter().map(|row| row.key.bits()).collect();
        let waiter_markers: Vec<i64> = rows.iter().map(|row| row.waiter_marker).collect();
        let beside: Vec<i64> = rows.iter().map(|row| row.beside).collect();
        // No token depends on a commit that only notifies waiters.
        let acquires = rows.iter().any(|row| row.op.acquires());
        let reads = rows.iter().any(|row| row.op.reads());
        let statements = &self.statements;
        // The row of a waiter has its marker.
        let waits = |row: &Row| row.op.reads() && row.waiter_marker != 0;
        let text = match (reads, rows.iter().any(waits)) {
            (false, _) => &statements.batch,
            (true, false) => &statements.batch_with_readers,
            (true, true) => &statements.batch_with_waiting_readers,
        };
        let mut query = sqlx::query(text.clone())
            .bind(operations)
            .bind(keys)
            .bind(waiter_markers)
            .bind(beside)
            .bind(self.synchronous)
            .bind(if acquires { "on" } else { "off" });
        if reads {
            query = query.bind(self.database);
        }
        let row = self.fetch_one(connector, "acquire", query).await?;
        self.read(&row)
    }

    /// Returns the statement of a single row, if its operation has one.
    fn single(&self, row: &Row) -> Option<Query<'static, Postgres, PgArguments>> {
        let AdvisoryKey::Int64(key) = row.key else {
            return None;
        };
        let statements = &self.statements;
        let (text, acquires) = match row.op {
            Op::Exclusive => (&statements.acquire, true),
            Op::ExclusiveYielding => (&statements.acquire_yielding, true),
            Op::ExclusiveOfWaiter => (&statements.acquire_of_waiter, true),
            Op::Unlock => (&statements.release, false),
            _ => return None,
        };
        let mut query = sqlx::query(text.clone()).bind(key);
        if acquires {
            query = query.bind(self.synchronous);
        }
        if row.op != Op::Exclusive {
            query = query.bind(row.waiter_marker);
        }
        if row.op == Op::ExclusiveOfWaiter {
            query = query.bind(row.beside);
        }
        Some(query)
    }

    /// Reads the first column, if the second proves that the claimed backend answered.
    pub(super) fn read<T>(&mut self, row: &PgRow) -> Result<T, Failure>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        self.check_answerer(row.try_get(1))?;
        row.try_get(0)
            .map_err(|_| Failure::Over(self.lose(ERRORS.unexpected("acquire"))))
    }

    /// Ends the session if another backend answered, because its locks may then belong to any
    /// client.
    fn check_answerer(&mut self, answer: Result<i32, sqlx::Error>) -> Result<(), Failure> {
        let why = match answer.map(Answerer::of) {
            Ok(Answerer::Ours(pid)) if pid == self.pid => return Ok(()),
            Ok(Answerer::Standby) => ERRORS.error(
                ErrorKind::Lost,
                "acquire",
                "the server has become a standby, which shares no locks with its primary",
            ),
            Ok(Answerer::Ours(_) | Answerer::Another) => ERRORS.error(
                ErrorKind::Lost,
                "acquire",
                "another backend answered than the one that holds the locks; is there a pooler in transaction mode?",
            ),
            Err(_) => ERRORS.unexpected("acquire"),
        };
        Err(Failure::Over(self.lose(why)))
    }

    /// Sends a statement and waits for its only row; see [`fetch`](Self::fetch).
    async fn fetch_one(
        &mut self,
        connector: &Connector,
        operation: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<PgRow, Failure> {
        self.fetch(connector, operation, async |connection| {
            query.fetch_one(connection).await
        })
        .await
    }

    /// Sends a statement and waits for its answer. Gives the connection up after an error that it
    /// does not survive. Without an answer, the caller [gives it up](Self::give_up) when the
    /// session ends.
    pub(super) async fn fetch<T>(
        &mut self,
        connector: &Connector,
        operation: &'static str,
        ask: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Failure> {
        let Some(connection) = &mut self.connection else {
            return Err(Failure::Over(error::over(operation)));
        };
        // After a panic the state of the connection is unknown.
        let asked = contained(async { Ok(ask(connection).await) }).await;
        match asked
            .map_err(|panic| Failure::Over(self.lose(error::over(operation).with_source(panic))))?
        {
            Ok(answer) => Ok(answer),
            Err(error) if !error::is_over(&error) => {
                Err(Failure::Statement(connector.map_error(error, operation)))
            }
            Err(error) => {
                let why = error::over(operation).with_source(connector.map_error(error, operation));
                Err(Failure::Over(self.lose(why)))
            }
        }
    }

    /// Gives the connection up because no answer came within `ttl`. Returns the error.
    pub(crate) fn give_up(
        &mut self,
        connector: &Connector,
        operation: &'static str,
        ttl: Duration,
    ) -> Error {
        self.lose(error::timed_out(
            ErrorKind::Lost,
            operation,
            &connector.endpoint(),
            Limit::Ttl(ttl),
        ))
    }

    /// Gives the connection up. Its leases are lost before the server can free the locks.
    pub(super) fn lose(&mut self, why: Error) -> Error {
        self.end_session.call();
        (self.connection, self.connection_permit) = (None, None);
        self.held.clear();
        self.markers.clear();
        self.record_markers.clear();
        why
    }

    /// Tries the permits of a semaphore.
    pub(super) async fn permit(
        &mut self,
        connector: &Connector,
        acquire: &AcquireJob,
        permit_keys: &PermitKeys,
    ) -> Answer {
        // Each acquisition starts at another permit, so that it passes over few permits that are
        // held.
        let start = (acquire
            .acquisition
            .number
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            >> 32) as u32
            % permit_keys.of.max(1);
        let order = (start..permit_keys.of)
            .chain(0..start)
            .map(|number| permit_keys.permit(number + 1));
        let candidates: Vec<i64> = order
            .filter(|key| !self.held.contains_key(&AdvisoryKey::Int64(*key)))
            .collect();
        let count = permit_keys.count();
        let query = sqlx::query(self.statements.permit.clone())
            .bind(&candidates)
            .bind(count)
            .bind(permit_keys.any_count())
            .bind(!self.markers.is_set(count))
            .bind(self.database);
        let asked = self.fetch_one(connector, "acquire", query).await;
        let result: i64 = match asked.and_then(|row| self.read(&row)) {
            Ok(result) => result,
            Err(failure) => {
                let (Ok(error) | Err(error)) = self
                    .recover(connector, &[], vec![permit_keys.key()], failure)
                    .await;
                return Err(error);
            }
        };
        let granted = usize::try_from(result)
            .ok()
            .and_then(|place| candidates.get(place.checked_sub(1)?))
            .copied();
        if let Some(key) = granted {
            let key = AdvisoryKey::Int64(key);
            self.held.insert(
                key,
                HeldLock::Permit {
                    acquisition: acquire.acquisition,
                    count,
                },
            );
            // The statement has set this marker, if it was not set.
            self.markers.add(count, acquire.acquisition);
            self.drop_markers(acquire.acquisition, acquire.markers);
            return Ok(JobResult::Granted { key, token: None });
        }
        if result <= OTHER_COUNT {
            let other = OTHER_COUNT - result;
            return Err(ERRORS.error(
                ErrorKind::Conflict,
                "acquire",
                format!(
                    "this semaphore is in use with {other} permits and was requested with {}; use the same number everywhere",
                    permit_keys.of
                ),
            ));
        }
        Ok(JobResult::Refused {
            marked: self.has_markers(acquire.acquisition, acquire.markers),
        })
    }

    /// Sends a statement, so that the session does not count as idle.
    pub(crate) async fn renew(&mut self, connector: &Connector) -> Result<()> {
        let query = sqlx::query(self.statements.renew.clone());
        let asked = self.fetch_one(connector, "renew", query).await;
        match asked.and_then(|row| self.read::<i64>(&row)) {
            Ok(_) => Ok(()),
            Err(Failure::Statement(error) | Failure::Over(error)) => Err(error),
        }
    }

    async fn owned(
        &mut self,
        connector: &Connector,
        marks: Vec<i64>,
    ) -> Result<Vec<Owned>, Failure> {
        let query = sqlx::query(self.statements.owned.clone())
            .bind(marks)
            .bind(self.database);
        let rows = self
            .fetch(connector, "reconcile", async |connection| {
                query.fetch_all(connection).await
            })
            .await?;
        self.check_answerer(
            rows.first()
                .map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get(5)),
        )?;
        let owned = |row: &PgRow| -> Result<Option<Owned>, sqlx::Error> {
            let Some(classid) = row.try_get(0)? else {
                return Ok(None);
            };
            let key = AdvisoryKey::of_pg_locks(classid, row.try_get(1)?, row.try_get(2)?);
            Ok(Some(Owned {
                key,
                exclusive: row.try_get(3)?,
                ours: row.try_get(4)?,
            }))
        };
        let read = |row| {
            owned(row)
                .map_err(|error| Failure::Statement(connector.map_error(error, "reconcile")))
                .transpose()
        };
        rows.iter().filter_map(read).collect()
    }

    /// Compares the locks of the server with the table. Releases locks that only the server has,
    /// and forgets locks that only the table has. Notes revocation markers. Returns the
    /// acquisitions that hold a lock.
    pub(crate) async fn reconcile(
        &mut self,
        connector: &Connector,
    ) -> Result<claims::Owned<AcquisitionKey>> {
        let marks: HashMap<i64, AdvisoryKey> = self
            .held
            .keys()
            .map(|key| (key.revocation_marker(self.pid), *key))
            .collect();
        let owned = self
            .clean(connector, marks.keys().copied().collect(), Vec::new())
            .await?;
        let ours: HashSet<AdvisoryKey> = owned
            .iter()
            .filter(|owned| owned.ours)
            .map(|owned| owned.key)
            .collect();
        let gone: Vec<(AdvisoryKey, AcquisitionKey)> = self
            .held
            .iter()
            .filter(|(key, _)| !ours.contains(key))
            .filter_map(|(key, held)| match held {
                HeldLock::Exclusive(acquisition) => Some((*key, *acquisition)),
                _ => None,
            })
            .collect();
        self.held.retain(|key, _| ours.contains(key));
        let mut batch = StatementBatch::default();
        for (key, acquisition) in gone {
            self.clear_record_marker(key, acquisition, &mut batch);
        }
        for mark in owned
            .iter()
            .filter(|owned| !owned.ours)
            .map(|owned| owned.key.bits())
        {
            if let Some(key) = marks.get(&mark)
                && self.revoked.insert(*key, mark).is_none()
            {
                // The revoking session sees by this marker that the holder has noted the
                // revocation.
                self.markers.add(mark, AcquisitionKey::of_revocation(*key));
                batch.add_marker(Op::SetMarker, mark, *key, RowPurpose::SetMarker(mark));
            }
        }
        self.run(connector, batch, &mut []).await;
        let names = |held: &HeldLock| match held {
            HeldLock::Exclusive(acquisition) | HeldLock::Permit { acquisition, .. } => {
                vec![*acquisition]
            }
            HeldLock::Shared { readers, .. } => readers.clone(),
        };
        let revoked = self
            .held
            .iter()
            .filter(|(key, _)| self.revoked.contains_key(key));
        Ok(claims::Owned {
            claims: self.held.values().flat_map(names).collect(),
            revoked: revoked.flat_map(|(_, held)| names(held)).collect(),
        })
    }

    /// Releases locks that only the server has, and notifies the waiters for them and for the keys
    /// `of`. Returns what the server had before, including those of `marks` that other sessions
    /// hold.
    pub(super) async fn clean(
        &mut self,
        connector: &Connector,
        marks: Vec<i64>,
        of: Vec<AdvisoryKey>,
    ) -> Result<Vec<Owned>> {
        let mut freed = of;
        let mut cleaned = self.try_clean(connector, marks.clone(), &mut freed).await;
        if let Err(Failure::Statement(error)) = &cleaned {
            // An administrator may have cancelled it, for example.
            tracing::debug!(target: "leasehold", %error, "reading the locks failed; trying again");
            cleaned = self.try_clean(connector, marks, &mut freed).await;
        }
        let owned = cleaned.map_err(|failure| match failure {
            Failure::Over(error) => error,
            // It is unknown which locks the session holds.
            Failure::Statement(error) => self.lose(error::over("reconcile").with_source(error)),
        })?;
        self.notify_waiters(connector, freed).await?;
        Ok(owned)
    }

    async fn try_clean(
        &mut self,
        connector: &Connector,
        marks: Vec<i64>,
        freed: &mut Vec<AdvisoryKey>,
    ) -> Result<Vec<Owned>, Failure> {
        let owned = self.owned(connector, marks).await?;
        let unknown: Vec<Owned> = owned
            .iter()
            .copied()
            .filter(|owned| owned.ours && !self.knows(*owned))
            .collect();
        if unknown.is_empty() {
            return Ok(owned);
        }
        tracing::debug!(target: "leasehold", ?unknown, "releasing locks without an owner");
        freed.extend(unknown.iter().map(|owned| owned.key));
        let keys: Vec<i64> = unknown.iter().map(|owned| owned.key.bits()).collect();
        let pairs: Vec<bool> = unknown.iter().map(|owned| owned.key.is_pair()).collect();
        let exclusive: Vec<bool> = unknown.iter().map(|owned| owned.exclusive).collect();
        let query = sqlx::query(self.statements.unlock.clone())
            .bind(keys)
            .bind(pairs)
            .bind(exclusive);
        let row = self.fetch_one(connector, "reconcile", query).await?;
        self.read::<bool>(&row)?;
        Ok(owned)
    }

    /// Notifies the waiters for these keys, here and in other processes, as a release does. A
    /// waiter that cannot be notified polls.
    async fn notify_waiters(
        &mut self,
        connector: &Connector,
        freed: Vec<AdvisoryKey>,
    ) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        let markers: Vec<i64> = freed.iter().map(|key| key.waiter_marker()).collect();
        let payloads: Vec<String> = freed.iter().map(|key| key.payload()).collect();
        freed.iter().for_each(|key| self.waiters.notify(*key));
        for _ in 0..NOTIFY_ATTEMPTS {
            let query = sqlx::query(self.statements.notify.clone())
                .bind(&markers)
                .bind(&payloads);
            let notified = self.fetch_one(connector, "reconcile", query).await;
            match notified.and_then(|row| self.read::<i64>(&row)) {
                Ok(_) => break,
                Err(Failure::Over(error)) => return Err(error),
                Err(Failure::Statement(error)) => {
                    tracing::debug!(target: "leasehold", %error, "could not notify the waiters");
                }
            }
        }
        Ok(())
    }

    /// Returns whether the table has this lock.
    fn knows(&self, owned: Owned) -> bool {
        match (self.held.get(&owned.key), owned.key) {
            (Some(HeldLock::Shared { .. }), _) => !owned.exclusive,
            (Some(_), _) => owned.exclusive,
            (None, AdvisoryKey::Int64(marker)) => !owned.exclusive && self.markers.is_set(marker),
            (None, AdvisoryKey::Int32Pair(..)) => false,
        }
    }

    /// Returns the key that this acquisition holds.
    fn key_held_by(&self, acquisition: AcquisitionKey) -> Option<AdvisoryKey> {
        let has = |held: &HeldLock| match held {
            HeldLock::Exclusive(held)
            | HeldLock::Permit {
                acquisition: held, ..
            } => *held == acquisition,
            HeldLock::Shared { readers, .. } => readers.contains(&acquisition),
        };
        self.held
            .iter()
            .find(|(_, held)| has(held))
            .map(|(key, _)| *key)
    }

    /// Releases the locks of these acquisitions.
    pub(crate) async fn release(
        &mut self,
        connector: &Connector,
        names: &[AcquisitionKey],
    ) -> Result<()> {
        let release = |acquisition: &AcquisitionKey| {
            let key = self.key_held_by(*acquisition)?;
            let semaphore = (key != acquisition.key).then_some(acquisition.key);
            Some(Job::Release {
                acquisition: *acquisition,
                key,
                semaphore,
            })
        };
        let jobs: Vec<Job> = names.iter().filter_map(release).collect();
        self.execute(connector, Vec::new(), &jobs)
            .await
            .into_iter()
            .try_for_each(|answer| answer.map(drop))
    }

    /// Closes the connection.
    pub(crate) async fn close(&mut self, connector: &Connector) -> Result<()> {
        let Some(connection) = self.connection.take() else {
            return Ok(());
        };
        let _permit_until_closed = self.connection_permit.take();
        self.held.clear();
        self.markers.clear();
        match timeout(connector.config.timeout, connection.close()).await {
            Ok(closed) => closed.map_err(|error| connector.map_error(error, "close")),
            Err(_elapsed) => Err(connector.timed_out(
                ErrorKind::Indeterminate,
                "close",
                connector.config.timeout,
            )),
        }
    }
}

//! [`SessionConnection`]: a connection that holds locks, and the table of what it holds.
//!
//! The server grants a session any lock that it already holds: exclusively a second time,
//! exclusively in addition to shared, and so on. Therefore the table here decides which requests
//! are sent at all. The table is exact. It is under one mutex with the connection, and after a
//! statement that failed, the locks of the server are read before anything else is sent.

mod markers;
mod plan;
mod queries;
mod record;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};

use leasehold_core::{Error, Result};
use sqlx::PgConnection;

use crate::{
    connection::{ConnectionPermit, Connector},
    error::{self, ERRORS},
    handshake::OpenedConnection,
    job::{AcquisitionKey, Answer, Job, JobResult, LockRequest, WaiterMarkers},
    keys::AdvisoryKey,
    session_connection::markers::MarkerCounts,
    statement::{DONE, Op, REFUSED, Row, Statements},
    waiters::WaiterRegistry,
};

/// A hook that ends the session of a connection.
///
/// The connection calls it before it is given up, because the server then frees all its locks.
/// Apart from a failed renewal, nothing else ends a session.
#[derive(Clone, Default)]
pub(crate) struct EndSession(Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>);

impl EndSession {
    /// Sets the hook, once for each connection.
    pub(crate) fn set(&self, end: impl Fn() + Send + Sync + 'static) {
        let _: &_ = self.0.get_or_init(|| Box::new(end));
    }

    fn call(&self) {
        if let Some(end) = self.0.get() {
            end();
        }
    }
}

impl fmt::Debug for EndSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndSession")
    }
}

/// A connection that holds locks, and the table of what it holds.
pub(crate) struct SessionConnection {
    /// `None` after it broke. Its locks are gone then.
    connection: Option<PgConnection>,
    connection_permit: Option<ConnectionPermit>,
    end_session: EndSession,
    /// The waiters of this process. The server does not show a session its own markers.
    waiters: Arc<WaiterRegistry>,
    statements: Statements,
    pid: i32,
    /// Whether commits wait for a standby.
    synchronous: bool,
    /// The oid of the database.
    database: i64,
    held: HashMap<AdvisoryKey, HeldLock>,
    /// The markers of waiters, the keys of permit counts and the revocation markers.
    markers: MarkerCounts,
    /// The revocation markers of locks that an operator has revoked gracefully.
    revoked: HashMap<AdvisoryKey, i64>,
    /// The markers of the records that the holders of these locks have written.
    record_markers: HashMap<AdvisoryKey, i64>,
    /// The markers and locks that the last statement made unneeded. The next one clears them.
    unneeded: Vec<(Op, AdvisoryKey)>,
}

/// A lock that is held or requested.
#[derive(Debug)]
pub(crate) enum HeldLock {
    Exclusive(AcquisitionKey),
    /// The server has one lock for all readers of the session.
    Shared {
        readers: Vec<AcquisitionKey>,
        token: Option<i64>,
    },
    Permit {
        acquisition: AcquisitionKey,
        count: i64,
    },
}

/// The rows of one statement, and their purposes.
#[derive(Default)]
pub(crate) struct StatementBatch {
    rows: Vec<Row>,
    /// One element for each row.
    planned: Vec<PlannedRow>,
}

/// The purpose of one row.
pub(crate) struct PlannedRow {
    /// The index of the job that its result answers.
    job: Option<usize>,
    /// The key of the lock or of the semaphore, for whose waiters the row matters.
    of: AdvisoryKey,
    purpose: RowPurpose,
}

/// The purpose of a row.
pub(crate) enum RowPurpose {
    Acquire {
        acquisition: AcquisitionKey,
        key: AdvisoryKey,
        markers: Option<WaiterMarkers>,
        /// Whether the row clears the markers when it is granted.
        sole: bool,
    },
    Join {
        acquisition: AcquisitionKey,
        key: AdvisoryKey,
        markers: Option<WaiterMarkers>,
    },
    Release,
    SetMarker(i64),
    ClearMarker,
}

impl StatementBatch {
    fn add(&mut self, row: Row, job: Option<usize>, of: AdvisoryKey, purpose: RowPurpose) {
        self.rows.push(row);
        self.planned.push(PlannedRow { job, of, purpose });
    }

    fn add_marker(&mut self, op: Op, marker: i64, of: AdvisoryKey, purpose: RowPurpose) {
        self.add(
            Row {
                op,
                key: AdvisoryKey::Int64(marker),
                waiter_marker: 0,
                beside: 0,
            },
            None,
            of,
            purpose,
        );
    }
}

impl SessionConnection {
    pub(crate) fn new(
        holding: OpenedConnection,
        connection_permit: ConnectionPermit,
        waiters: &Arc<WaiterRegistry>,
    ) -> Self {
        let OpenedConnection {
            connection,
            statements,
            pid,
            synchronous,
            database,
        } = holding;
        Self {
            connection: Some(connection),
            connection_permit: Some(connection_permit),
            end_session: EndSession::default(),
            waiters: Arc::clone(waiters),
            statements,
            pid,
            synchronous,
            database,
            held: HashMap::new(),
            markers: MarkerCounts::default(),
            revoked: HashMap::new(),
            record_markers: HashMap::new(),
            unneeded: Vec::new(),
        }
    }

    /// Returns the hook that ends the session.
    pub(crate) fn end_session(&self) -> EndSession {
        self.end_session.clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.connection.is_none()
    }

    /// Runs the jobs in order, in one statement except for permits. `unused` are markers that are
    /// no longer needed.
    pub(crate) async fn execute(
        &mut self,
        connector: &Connector,
        unused: Vec<(AcquisitionKey, WaiterMarkers)>,
        jobs: &[Job],
    ) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = jobs.iter().map(|_| None).collect();
        let mut batch = StatementBatch::default();
        for (acquisition, markers) in unused {
            self.clear_markers(acquisition, markers, &mut batch);
        }
        for (place, job) in jobs.iter().enumerate() {
            match job {
                Job::Cleanup => answers[place] = Some(Ok(JobResult::CleanedUp)),
                Job::Acquire(acquire) => match &acquire.lock_request {
                    LockRequest::Exclusive(key) => {
                        answers[place] = self.plan_acquire(acquire, *key, false, place, &mut batch);
                    }
                    LockRequest::Shared(key) => {
                        answers[place] = self.plan_acquire(acquire, *key, true, place, &mut batch);
                    }
                    LockRequest::Permit(permit_keys) => {
                        self.set_markers(acquire, &mut batch);
                        self.run(connector, std::mem::take(&mut batch), &mut answers)
                            .await;
                        answers[place] =
                            Some(Box::pin(self.permit(connector, acquire, permit_keys)).await);
                    }
                },
                Job::Release {
                    acquisition,
                    key,
                    semaphore,
                } => {
                    answers[place] =
                        self.plan_release(*acquisition, *key, *semaphore, place, &mut batch);
                }
            }
        }
        self.run(connector, batch, &mut answers).await;
        while !self.unneeded.is_empty() && !self.is_over() {
            let mut batch = StatementBatch::default();
            for (op, key) in std::mem::take(&mut self.unneeded) {
                batch.add(
                    Row {
                        op,
                        key,
                        waiter_marker: key.waiter_marker(),
                        beside: 0,
                    },
                    None,
                    key,
                    RowPurpose::ClearMarker,
                );
            }
            self.run(connector, batch, &mut answers).await;
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(error::over("acquire"))))
            .collect()
    }

    async fn run(
        &mut self,
        connector: &Connector,
        batch: StatementBatch,
        answers: &mut [Option<Answer>],
    ) {
        let StatementBatch { rows, planned } = batch;
        if rows.is_empty() {
            return;
        }
        match self.execute_rows(connector, &rows).await {
            Ok(results) if results.len() == planned.len() => {
                for (planned, result) in planned.into_iter().zip(results) {
                    let answer = self.take_result(connector, &planned, result);
                    if let Some(job) = planned.job {
                        answers[job] = Some(Ok(answer));
                    }
                }
            }
            outcome => {
                let failure = match outcome {
                    Ok(_) => Failure::Over(self.lose(ERRORS.unexpected("acquire"))),
                    Err(failure) => failure,
                };
                // Boxed, so that the rare case does not enlarge the usual future.
                let of = planned.iter().map(|planned| planned.of).collect();
                let failure = Box::pin(self.recover(connector, &planned, of, failure)).await;
                for planned in planned {
                    if let Some(job) = planned.job {
                        answers[job] = Some(match (&failure, &planned.purpose) {
                            // The lock that was to be released is certainly no longer held.
                            (Ok(_), RowPurpose::Release) => Ok(JobResult::Released(true)),
                            (Ok(error) | Err(error), _) => Err(error.clone()),
                        });
                    }
                }
            }
        }
    }

    fn take_result(
        &mut self,
        connector: &Connector,
        planned: &PlannedRow,
        result: i64,
    ) -> JobResult {
        match planned.purpose {
            RowPurpose::Acquire {
                acquisition,
                key,
                markers,
                sole,
            } => {
                if result <= REFUSED {
                    self.held.remove(&key);
                    return JobResult::Refused {
                        marked: self.has_markers(acquisition, markers),
                    };
                }
                let drawn = connector.config.fencing.then_some(result);
                if let Some(HeldLock::Shared { token, .. }) = self.held.get_mut(&key) {
                    *token = drawn;
                }
                if sole {
                    markers
                        .iter()
                        .flat_map(WaiterMarkers::each)
                        .for_each(|marker| self.markers.forget(marker));
                } else {
                    self.drop_markers(acquisition, markers);
                }
                JobResult::Granted { key, token: drawn }
            }
            RowPurpose::Join {
                acquisition,
                key,
                markers,
            } => {
                // The same statement may have refused the first reader.
                if let (Some(HeldLock::Shared { token, .. }), true) =
                    (self.held.get(&key), result == DONE)
                {
                    let token = *token;
                    self.drop_markers(acquisition, markers);
                    return JobResult::Granted { key, token };
                }
                if let Some(HeldLock::Shared { readers, .. }) = self.held.get_mut(&key) {
                    readers.retain(|joining| *joining != acquisition);
                    if readers.is_empty() {
                        // The same statement may have released the other readers.
                        self.held.remove(&key);
                        self.unneeded.push((Op::UnlockShared, key));
                    }
                }
                JobResult::Refused {
                    marked: self.has_markers(acquisition, markers),
                }
            }
            RowPurpose::Release => {
                self.waiters.notify(planned.of);
                JobResult::Released(result != REFUSED)
            }
            RowPurpose::SetMarker(marker) => {
                if result == REFUSED {
                    self.markers.forget(marker);
                }
                JobResult::CleanedUp
            }
            RowPurpose::ClearMarker => JobResult::CleanedUp,
        }
    }

    fn has_markers(&self, acquisition: AcquisitionKey, markers: Option<WaiterMarkers>) -> bool {
        markers.is_some_and(|markers| {
            markers
                .each()
                .all(|marker| self.markers.is_set_for(marker, acquisition))
        })
    }

    /// Records that the acquisition no longer waits.
    fn drop_markers(&mut self, acquisition: AcquisitionKey, markers: Option<WaiterMarkers>) {
        for marker in markers.iter().flat_map(WaiterMarkers::each) {
            if self.markers.remove(marker, acquisition) {
                self.unneeded
                    .push((Op::ClearMarker, AdvisoryKey::Int64(marker)));
            }
        }
    }

    /// Recovers from a statement that failed and that may have executed some of its rows.
    ///
    /// Afterwards the server holds what the table holds and nothing of what the statement
    /// requested, and the waiters for the keys `of` are notified. `Err` means that the connection
    /// was given up.
    async fn recover(
        &mut self,
        connector: &Connector,
        planned: &[PlannedRow],
        of: Vec<AdvisoryKey>,
        failure: Failure,
    ) -> Result<Error, Error> {
        for planned in planned {
            match &planned.purpose {
                RowPurpose::Acquire {
                    key, markers, sole, ..
                } => {
                    self.held.remove(key);
                    if *sole {
                        // Markers that the row did not clear are removed below.
                        markers
                            .iter()
                            .flat_map(WaiterMarkers::each)
                            .for_each(|marker| self.markers.forget(marker));
                    }
                }
                RowPurpose::Join {
                    acquisition, key, ..
                } => {
                    if let Some(HeldLock::Shared { readers, .. }) = self.held.get_mut(key) {
                        readers.retain(|joining| joining != acquisition);
                        if readers.is_empty() {
                            self.held.remove(key);
                        }
                    }
                }
                RowPurpose::SetMarker(marker) => self.markers.forget(*marker),
                RowPurpose::Release | RowPurpose::ClearMarker => {}
            }
        }
        match failure {
            Failure::Over(error) => Err(error),
            Failure::Statement(error) => {
                self.clean(connector, Vec::new(), of).await?;
                Ok(error)
            }
        }
    }
}

/// The failure of a statement.
pub(crate) enum Failure {
    /// The connection is usable.
    Statement(Error),
    /// The connection was given up.
    Over(Error),
}

fn refused(marked: bool) -> Answer {
    Ok(JobResult::Refused { marked })
}

//! [`PostgresSessions`]: sessions with one connection each, which holds the locks.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    Deadline, ErrorKind, LossReason, Result,
    backend::{
        BoxFuture, async_trait,
        support::{contained, supervised},
    },
    session::{Claim, Opened, Owned, Session, SessionClock, SessionDriver},
};

use tokio::sync::Mutex;

use crate::{
    batch::BatchExecutor,
    connection::{ConnectionPermit, Connector},
    error::ERRORS,
    job::{AcquisitionKey, Job, JobResult, WaiterMarkers},
    keys::AdvisoryKey,
    record::WriteJob,
    record_table::WRITE,
    session_connection::SessionConnection,
    statement::SILENT_AFTER,
    waiters::WaiterRegistry,
};

/// The maximum number of locks per session. The cost of a statement grows with the number of locks
/// that its session holds.
const CAPACITY: usize = 1_000;

/// Opens, renews and closes the connections that hold locks.
#[derive(Debug)]
pub(crate) struct PostgresSessions {
    pub(crate) connector: Arc<Connector>,
    pub(crate) waiters: Arc<WaiterRegistry>,
}

/// One session: its connection, and the writers that wait in it.
pub(crate) struct Handle {
    executor: Arc<BatchExecutor>,
    next: AtomicU64,
    /// The number of writers that wait in the session.
    waiting_writers: AtomicUsize,
    /// Whether the [`heartbeat`] task of the session runs.
    has_heartbeat: AtomicBool,
    /// The turn of the next write of a record.
    write_turn: Arc<Mutex<()>>,
}

/// The interval of the heartbeats of a session in which a writer waits. Readers yield to the writer
/// for [`SILENT_AFTER`] after the last heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);

/// Counts a writer that begins to wait, and starts the [`heartbeat`] task if it does not run.
fn writer_waits(session: &Arc<Session<PostgresSessions>>) {
    let handle = session.handle();
    handle.waiting_writers.fetch_add(1, Ordering::AcqRel);
    // With a shorter TTL, the server ends a silent session by then.
    if session.ttl().as_duration() > SILENT_AFTER
        && !handle.has_heartbeat.swap(true, Ordering::AcqRel)
    {
        // The task ends with the session, or soon after the last waiting writer.
        let session = Arc::downgrade(session);
        drop(tokio::spawn(supervised(move || {
            heartbeat(Weak::clone(&session))
        })));
    }
}

/// Sends heartbeats until no writer waits in the session.
async fn heartbeat(session: Weak<Session<PostgresSessions>>) {
    loop {
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        let Some(session) = session.upgrade().filter(|session| session.is_live()) else {
            return;
        };
        let handle = session.handle();
        if handle.waiting_writers.load(Ordering::Acquire) == 0 {
            handle.has_heartbeat.store(false, Ordering::Release);
            // A writer may have started to wait since the counter was read.
            if handle.waiting_writers.load(Ordering::Acquire) == 0
                || handle.has_heartbeat.swap(true, Ordering::AcqRel)
            {
                return;
            }
        }
        // This is not a renewal of the session, which would also read the locks of the server.
        if let Err(error) = handle
            .with_connection("renew", |conn, connector| Box::pin(conn.renew(connector)))
            .await
        {
            tracing::debug!(target: "leasehold", %error, "a heartbeat failed: readers may overtake the writers of this session");
        }
    }
}

impl Handle {
    pub(crate) fn connector(&self) -> &Arc<Connector> {
        &self.executor.connector
    }

    /// Returns the identity of a new acquisition of `key`.
    pub(crate) fn new_acquisition(&self, key: AdvisoryKey) -> AcquisitionKey {
        AcquisitionKey {
            key,
            number: self.next.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Uses the connection in a task of its own. The caller may not be polled for long, and would
    /// then keep all other tasks from the connection.
    async fn with_connection<T, F>(&self, operation: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut SessionConnection, &'a Connector) -> BoxFuture<'a, Result<T>>
            + Send
            + 'static,
    {
        let executor = Arc::clone(&self.executor);
        // A panic becomes an error of the caller.
        let task = tokio::spawn(contained(async move {
            let connector = &executor.connector;
            let mut conn = executor.conn.lock().await;
            match tokio::time::timeout(executor.limit, work(&mut conn, connector)).await {
                Ok(done) => done,
                Err(_elapsed) => Err(conn.give_up(connector, operation, executor.limit)),
            }
        }));
        task.await.map_err(|_| {
            ERRORS.error(
                ErrorKind::Indeterminate,
                operation,
                "the runtime is shutting down",
            )
        })?
    }
}

/// Runs a job of one claim, alone or in a batch with other jobs of its session.
pub(crate) async fn run(
    claim: &Claim<PostgresSessions>,
    operation: &'static str,
    job: Job,
) -> Result<JobResult> {
    run_in(claim.session(), operation, job).await
}

/// Writes a record on the connection of the session.
///
/// It is no job of a batch: a write that waits for the disk, or for a lock on the table, would
/// delay the answers of the other jobs, and its failure would be theirs. Writes take turns before
/// they ask for the connection, so that a renewal waits for one of them at most. The task completes
/// the write if the caller has given up.
pub(crate) async fn write_record(claim: &Claim<PostgresSessions>, job: WriteJob) -> Result<u64> {
    let handle = claim.session().handle();
    let (connector, limit) = (
        Arc::clone(&handle.executor.connector),
        handle.executor.response_timeout,
    );
    let turn = tokio::time::timeout(limit, Arc::clone(&handle.write_turn).lock_owned())
        .await
        .map_err(|_elapsed| connector.timed_out(ErrorKind::Unavailable, WRITE, limit))?;
    let writing = handle.with_connection(WRITE, |conn, connector| {
        Box::pin(async move {
            let written = conn.write_record(connector, job).await;
            drop(turn);
            written
        })
    });
    match tokio::time::timeout(limit, writing).await {
        Ok(written) => written,
        Err(_elapsed) => Err(connector.timed_out(ErrorKind::Indeterminate, WRITE, limit)),
    }
}

async fn run_in(
    session: &Session<PostgresSessions>,
    operation: &'static str,
    job: Job,
) -> Result<JobResult> {
    let executor = &session.handle().executor;
    let ran = executor.batcher.run(executor, job).await;
    let done = ran
        .map_err(|error| ERRORS.named(error, operation))
        .flatten();
    done.map_err(|error| error.with_operation(operation))
}

/// A guard that clears the markers of a waiter when it is dropped.
#[derive(Debug)]
pub(crate) struct MarkerGuard {
    session: Arc<Session<PostgresSessions>>,
    waiters: Arc<WaiterRegistry>,
    acquisition: AcquisitionKey,
    markers: Option<WaiterMarkers>,
    is_writer: bool,
}

impl MarkerGuard {
    pub(crate) fn new(
        claim: &Claim<PostgresSessions>,
        waiters: &Arc<WaiterRegistry>,
        markers: WaiterMarkers,
    ) -> Self {
        let session = Arc::clone(claim.session());
        let is_writer = markers.writer.is_some();
        if is_writer {
            writer_waits(&session);
        }
        Self {
            session,
            waiters: Arc::clone(waiters),
            acquisition: *claim.name(),
            markers: Some(markers),
            is_writer,
        }
    }

    /// Drops the guard without clearing the markers.
    pub(crate) fn disarm(mut self) {
        self.markers = None;
    }
}

impl Drop for MarkerGuard {
    fn drop(&mut self) {
        if self.is_writer {
            self.session
                .handle()
                .waiting_writers
                .fetch_sub(1, Ordering::AcqRel);
        }
        let Some(markers) = self.markers.take() else {
            return;
        };
        self.session
            .handle()
            .executor
            .release_markers(self.acquisition, markers);
        // Without a runtime, the next statement of the session clears them, or its end does.
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && self.session.is_live()
        {
            let (session, waiters) = (Arc::clone(&self.session), Arc::clone(&self.waiters));
            drop(runtime.spawn(async move {
                drop(run_in(&session, "acquire", Job::Cleanup).await);
                if markers.writer.is_some() {
                    // Readers of this process may have waited behind this writer.
                    waiters.notify(markers.key);
                }
            }));
        }
    }
}

#[async_trait]
impl SessionDriver for PostgresSessions {
    type Handle = Handle;
    type Claim = AcquisitionKey;

    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn max_sessions(&self) -> usize {
        self.connector.config.max_sessions
    }

    async fn open(&self, time: &SessionClock) -> Result<Opened<Handle>> {
        let connector = &self.connector;
        let connection_permit = ConnectionPermit::acquire(connector).ok_or_else(|| {
            let max = connector.config.max_sessions;
            ERRORS.error(
                ErrorKind::Unavailable,
                "acquire",
                format!(
                    "all {max} connections for locks are in use, with up to {CAPACITY} locks each; hold fewer locks at \
                     a time, or raise `max-sessions`"
                ),
            )
        })?;
        let sent = time.now();
        let (ttl, label) = (time.ttl(), time.label().to_owned());
        let opened = connector
            .on_driver_thread("acquire", |connector| async move {
                connector.open(ttl, &label).await
            })
            .await?;
        let conn = SessionConnection::new(opened, connection_permit, &self.waiters);
        let handle = Handle {
            executor: BatchExecutor::new(
                connector,
                conn,
                connector.response_timeout(time.ttl()),
                time.ttl().as_duration(),
            ),
            next: AtomicU64::new(0),
            waiting_writers: AtomicUsize::new(0),
            has_heartbeat: AtomicBool::new(false),
            write_turn: Arc::default(),
        };
        Ok(Opened {
            handle,
            deadline: time.deadline_from(sent),
        })
    }

    fn started(&self, session: &Arc<Session<Self>>) {
        let weak = Arc::downgrade(session);
        session.handle().executor.end_session.set(move || {
            if let Some(session) = weak.upgrade() {
                session.end(LossReason::SessionEnded);
            }
        });
    }

    async fn renew(&self, handle: &Handle, time: &SessionClock) -> Result<Deadline> {
        let sent = time.now();
        handle
            .with_connection("renew", |conn, connector| Box::pin(conn.renew(connector)))
            .await?;
        Ok(time.deadline_from(sent))
    }

    async fn list_owned(&self, handle: &Handle) -> Result<Owned<AcquisitionKey>> {
        handle
            .with_connection("reconcile", |conn, connector| {
                Box::pin(conn.reconcile(connector))
            })
            .await
    }

    async fn delete_orphans(&self, handle: &Handle, orphans: Vec<AcquisitionKey>) -> Result<()> {
        handle
            .with_connection("reconcile", move |conn, connector| {
                Box::pin(async move { conn.release(connector, &orphans).await })
            })
            .await
    }

    async fn close(&self, handle: &Handle) -> Result<()> {
        handle
            .with_connection("close", |conn, connector| Box::pin(conn.close(connector)))
            .await
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

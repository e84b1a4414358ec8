//! Sessions: one holding connection each.

use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
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
    session::{BatchLimits, Batcher, Claim, Opened, Owned, Session, SessionClock, SessionDriver},
};

use crate::{
    batch::{BatchExecutor, Done, Job, Name, WaiterMarkers},
    connection::Link,
    error::{self, named},
    keys::AdvisoryKey,
    session_conn::SessionConn,
    statement::SILENT_AFTER,
    waiters::WaiterRegistry,
};

/// Claims per session: every statement costs the server a walk over what its session has.
const CAPACITY: usize = 1_000;
/// One statement is under way at a time on a connection, so whatever is asked meanwhile goes
/// together in the next.
const LIMITS: BatchLimits = BatchLimits {
    alone: 0,
    calls: 1,
    batch: 256,
};

/// Opens, renews and closes holding connections.
#[derive(Debug)]
pub(crate) struct PostgresSessions {
    pub(crate) link: Arc<Link>,
    pub(crate) waiters: Arc<WaiterRegistry>,
}

/// One holding connection.
pub(crate) struct Handle {
    carrier: Arc<BatchExecutor>,
    gather: Arc<Batcher<BatchExecutor>>,
    next: AtomicU64,
    /// The number of writers that wait in the session, and whether its [`beat`] task runs.
    waiting_writers: AtomicUsize,
    beating: AtomicBool,
}

/// The interval of the markers of life of a session in which a writer waits. Readers yield to the
/// writer for [`SILENT_AFTER`] after the last one.
const BEAT: Duration = Duration::from_secs(2);

/// Counts a writer that begins to wait, and starts the [`beat`] task if it does not run.
fn writer_waits(session: &Arc<Session<PostgresSessions>>) {
    let handle = session.handle();
    handle.waiting_writers.fetch_add(1, Ordering::AcqRel);
    // The server ends a silent session with a shorter TTL by then.
    if session.ttl().as_duration() > SILENT_AFTER && !handle.beating.swap(true, Ordering::AcqRel) {
        // Ends with the session, or soon after the last of them.
        let session = Arc::downgrade(session);
        drop(tokio::spawn(supervised(move || {
            beat(Weak::clone(&session))
        })));
    }
}

/// Sends markers of life until no writer waits in the session.
async fn beat(session: Weak<Session<PostgresSessions>>) {
    loop {
        tokio::time::sleep(BEAT).await;
        let Some(session) = session.upgrade().filter(|session| session.is_live()) else {
            return;
        };
        let handle = session.handle();
        if handle.waiting_writers.load(Ordering::Acquire) == 0 {
            handle.beating.store(false, Ordering::Release);
            // One may have come at this moment.
            if handle.waiting_writers.load(Ordering::Acquire) == 0
                || handle.beating.swap(true, Ordering::AcqRel)
            {
                return;
            }
        }
        // Not a renewal of the session, which would read the server's locks, too.
        if let Err(error) = handle
            .driven("renew", |conn, link| Box::pin(conn.renew(link)))
            .await
        {
            tracing::debug!(target: "leasehold", %error, "readers may overtake the writers that wait here");
        }
    }
}

/// Whose connection it is, to be told before the connection is given up: with that the server frees
/// all that is held. That is the one place that ends a session, besides its renewal.
#[derive(Clone, Default)]
pub(crate) struct SessionRef(Arc<OnceLock<Weak<Session<PostgresSessions>>>>);

impl SessionRef {
    fn set(&self, session: &Arc<Session<PostgresSessions>>) {
        // Once for each connection.
        let _: &_ = self.0.get_or_init(|| Arc::downgrade(session));
    }

    pub(crate) fn end(&self) {
        if let Some(session) = self.0.get().and_then(Weak::upgrade) {
            session.end(LossReason::SessionEnded);
        }
    }
}

/// One of the connections that the configuration allows.
pub(crate) struct Counted(Arc<Link>);

impl Counted {
    /// One more, unless there are as many as there may be.
    fn one_more(link: &Arc<Link>) -> Option<Self> {
        let max = link.config.max_sessions;
        let more = |holding| (holding < max).then_some(holding + 1);
        link.holding
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        Some(Self(Arc::clone(link)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.holding.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Handle {
    /// A name that no other acquisition has.
    pub(crate) fn name(&self, key: AdvisoryKey) -> Name {
        Name {
            key,
            number: self.next.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Does something with the connection in a task of its own: whoever waits for it may be kept
    /// from asking for more, and would keep all others from the connection.
    async fn driven<T, F>(&self, operation: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut SessionConn, &'a Link) -> BoxFuture<'a, Result<T>>
            + Send
            + 'static,
    {
        let carrier = Arc::clone(&self.carrier);
        // A panic is told to whoever waits for it.
        let task = tokio::spawn(contained(async move {
            let link = &carrier.link;
            let mut conn = carrier.conn.lock().await;
            match tokio::time::timeout(carrier.limit, work(&mut conn, link)).await {
                Ok(done) => done,
                Err(_elapsed) => Err(conn.give_up(link, operation, carrier.limit)),
            }
        }));
        task.await.map_err(|_| {
            error::plain(
                ErrorKind::Indeterminate,
                operation,
                "the runtime shuts down",
            )
        })?
    }
}

/// Has a job of one claim done, alone or with others of its session.
pub(crate) async fn run(
    claim: &Claim<PostgresSessions>,
    operation: &'static str,
    job: Job,
) -> Result<Done> {
    run_in(claim.session(), operation, job).await
}

async fn run_in(
    session: &Session<PostgresSessions>,
    operation: &'static str,
    job: Job,
) -> Result<Done> {
    let handle = session.handle();
    let ran = handle.gather.run(&handle.carrier, job).await;
    let done = ran.map_err(|error| named(error, operation)).flatten();
    done.map_err(|error| error.with_operation(operation))
}

/// The markers of a waiter are up for as long as this lives.
#[derive(Debug)]
pub(crate) struct MarkerGuard {
    session: Arc<Session<PostgresSessions>>,
    waiters: Arc<WaiterRegistry>,
    name: Name,
    markers: Option<WaiterMarkers>,
    of_writer: bool,
}

impl MarkerGuard {
    pub(crate) fn new(
        claim: &Claim<PostgresSessions>,
        waiters: &Arc<WaiterRegistry>,
        markers: WaiterMarkers,
    ) -> Self {
        let session = Arc::clone(claim.session());
        let of_writer = markers.writer.is_some();
        if of_writer {
            writer_waits(&session);
        }
        Self {
            session,
            waiters: Arc::clone(waiters),
            name: *claim.name(),
            markers: Some(markers),
            of_writer,
        }
    }

    /// Somebody else has taken them down, or will.
    pub(crate) fn disarm(mut self) {
        self.markers = None;
    }
}

impl Drop for MarkerGuard {
    fn drop(&mut self) {
        if self.of_writer {
            self.session
                .handle()
                .waiting_writers
                .fetch_sub(1, Ordering::AcqRel);
        }
        let Some(markers) = self.markers.take() else {
            return;
        };
        self.session.handle().carrier.leave(self.name, markers);
        // Without a runtime they go with whatever is asked next, or with the session.
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && self.session.is_live()
        {
            let (session, waiters) = (Arc::clone(&self.session), Arc::clone(&self.waiters));
            drop(runtime.spawn(async move {
                drop(run_in(&session, "acquire", Job::Tidy).await);
                if markers.writer.is_some() {
                    // Readers of this process may have waited behind it.
                    waiters.wake(markers.key);
                }
            }));
        }
    }
}

#[async_trait]
impl SessionDriver for PostgresSessions {
    type Handle = Handle;
    type Claim = Name;

    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn max_sessions(&self) -> usize {
        self.link.config.max_sessions
    }

    async fn open(&self, time: &SessionClock) -> Result<Opened<Handle>> {
        let link = &self.link;
        let counted = Counted::one_more(link).ok_or_else(|| {
            let max = link.config.max_sessions;
            error::plain(
                ErrorKind::Unavailable,
                "acquire",
                format!(
                    "{max} connections hold locks already, each up to {CAPACITY}; hold fewer locks at a time, or raise \
                     `max-sessions`"
                ),
            )
        })?;
        let sent = time.now();
        let (ttl, label) = (time.ttl(), time.label().to_owned());
        let holding = link
            .on_driver_thread(
                "acquire",
                |link| async move { link.open(ttl, &label).await },
            )
            .await?;
        let conn = SessionConn::new(holding, counted, &self.waiters);
        let handle = Handle {
            carrier: BatchExecutor::new(
                link,
                conn,
                link.patience(time.ttl()),
                time.ttl().as_duration(),
            ),
            gather: Arc::new(Batcher::new(LIMITS)),
            next: AtomicU64::new(0),
            waiting_writers: AtomicUsize::new(0),
            beating: AtomicBool::new(false),
        };
        Ok(Opened {
            handle,
            deadline: time.deadline_from(sent),
        })
    }

    fn started(&self, session: &Arc<Session<Self>>) {
        session.handle().carrier.owner.set(session);
    }

    async fn renew(&self, handle: &Handle, time: &SessionClock) -> Result<Deadline> {
        let sent = time.now();
        handle
            .driven("renew", |conn, link| Box::pin(conn.renew(link)))
            .await?;
        Ok(time.deadline_from(sent))
    }

    async fn list_owned(&self, handle: &Handle) -> Result<Owned<Name>> {
        handle
            .driven("reconcile", |conn, link| Box::pin(conn.reconcile(link)))
            .await
    }

    async fn delete_orphans(&self, handle: &Handle, orphans: Vec<Name>) -> Result<()> {
        handle
            .driven("reconcile", move |conn, link| {
                Box::pin(async move { conn.give_back(link, &orphans).await })
            })
            .await
    }

    async fn close(&self, handle: &Handle) -> Result<()> {
        handle
            .driven("close", |conn, link| Box::pin(conn.close(link)))
            .await
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("carrier", &self.carrier)
            .finish_non_exhaustive()
    }
}

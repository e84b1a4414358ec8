//! [`Session`]: its deadline, its claims, its end; and [`SessionDriver`]: the trait that a session
//! backend implements. They are in one file, because each names the other.

use std::{
    fmt::{self, Debug},
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::{
    backend::{lease::SessionId, request::LossNotifier},
    clock::{AtomicDeadline, Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    session::{
        driver::{Opened, Owned, SessionClock},
        state::State,
    },
    signal::LossReason,
    ttl::Ttl,
};

/// Opens, renews and closes the sessions of a backend.
///
/// # For implementors
/// Every call must end: give all input and output a timeout well below the TTL. No future of the
/// driver is dropped before it completes, unless its runtime shuts down.
///
/// ```
/// use leasehold_core::{
///     Deadline, Result,
///     backend::async_trait,
///     session::{Opened, Owned, SessionClock, SessionDriver},
/// };
///
/// /// A server that keeps every session.
/// #[derive(Debug)]
/// struct Server;
///
/// #[async_trait]
/// impl SessionDriver for Server {
///     type Handle = u64;
///     type Claim = String;
///
///     async fn open(&self, clock: &SessionClock) -> Result<Opened<u64>> {
///         let sent = clock.now();
///         // Ask the server to open a session with this TTL, and return its id.
///         Ok(Opened { handle: 4711, deadline: clock.deadline_from(sent) })
///     }
///
///     async fn renew(&self, _handle: &u64, clock: &SessionClock) -> Result<Deadline> {
///         let sent = clock.now();
///         // Ask the server to keep the session for another TTL.
///         Ok(clock.deadline_from(sent))
///     }
///
///     async fn list_owned(&self, _handle: &u64) -> Result<Owned<String>> {
///         Ok(Owned::default())
///     }
///
///     async fn delete_orphans(&self, _handle: &u64, _orphans: Vec<String>) -> Result<()> {
///         Ok(())
///     }
///
///     async fn close(&self, _handle: &u64) -> Result<()> {
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait SessionDriver: Debug + Send + Sync + 'static {
    /// The driver's handle of a session, such as a lease id or a connection.
    type Handle: Debug + Send + Sync + 'static;

    /// The server's entry for one acquisition: an etcd key, the UUID of a ZooKeeper node, an
    /// advisory lock. If the server adds a part that the client learns later, such as a sequence
    /// number, leave that part out of `Eq` and `Hash`.
    type Claim: Clone + Debug + Eq + Hash + Send + Sync + 'static;

    /// Returns the total [weight](Self::weight) of claims at which a session is full. Further
    /// claims go to another session of the same TTL.
    fn capacity(&self) -> usize {
        usize::MAX
    }

    /// Returns how much of its session's [capacity](Self::capacity) `claim` uses. The default is 1.
    ///
    /// A server that lists the entries of a session in one message bounds the size of that message.
    /// For such a server the weight is the length of the claim's name.
    fn weight(&self, _claim: &Self::Claim) -> usize {
        1
    }

    /// Returns the maximum number of sessions. An idle session is closed to make room for a new
    /// one. If none is idle, [`open`](Self::open) is called, and the driver reports that there are
    /// too many.
    fn max_sessions(&self) -> usize {
        usize::MAX
    }

    /// Opens a session. Read [`SessionClock::now`] *before* the first byte is sent.
    ///
    /// # Errors
    /// Returns the driver's error. A session that may have been opened is then closed or expires.
    async fn open(&self, time: &SessionClock) -> Result<Opened<Self::Handle>>;

    /// Receives the session that was opened through this handle. A driver that may detect the end
    /// of the session by itself calls [`Session::end`] *before* the server can free the session's
    /// locks.
    fn started(&self, _session: &Arc<Session<Self>>)
    where
        Self: Sized,
    {
    }

    /// Renews the session and returns its new deadline, which must not be later than the server has
    /// *proved*.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the server does not know the session,
    /// which is final. Any other error leaves the deadline unchanged.
    async fn renew(&self, handle: &Self::Handle, time: &SessionClock) -> Result<Deadline>;

    /// Returns the entries that the server lists for this session.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the session has ended. Any other
    /// error is retried at the next renewal. If it fails for a whole TTL, renewals no longer move
    /// the session's deadline.
    async fn list_owned(&self, handle: &Self::Handle) -> Result<Owned<Self::Claim>>;

    /// Removes entries that no guard and no request of this process owns.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the session has ended. Any other
    /// error is retried at the next renewal. If it fails for a whole TTL, renewals no longer move
    /// the session's deadline.
    async fn delete_orphans(&self, handle: &Self::Handle, orphans: Vec<Self::Claim>) -> Result<()>;

    /// Ends the session and all locks in it. Best effort: a session that is not closed expires.
    ///
    /// # Errors
    /// Returns the driver's error.
    async fn close(&self, handle: &Self::Handle) -> Result<()>;
}

/// A session on the server, shared by all locks of one TTL.
///
/// See [`Sessions`](super::Sessions) for an example.
pub struct Session<D: SessionDriver> {
    id: SessionId,
    driver: Arc<D>,
    handle: D::Handle,
    pub(super) time: SessionClock,
    pub(super) deadline: AtomicDeadline,
    state: Mutex<State<D::Claim>>,
    /// Serialises renewals. It stores the last outcome: a task that waited for a renewal which was
    /// sent after its own request returns that outcome instead of renewing again.
    pub(super) renewal: tokio::sync::Mutex<Option<(Timestamp, Result<()>)>>,
    /// The time at which the last successful renewal was sent.
    pub(super) renewed: AtomicU64,
    /// The time at which the last renewal was started, successful or not.
    pub(super) tried: AtomicU64,
    ended: Notify,
}

impl<D: SessionDriver> Session<D> {
    /// Creates a session that no task keeps alive yet.
    pub(super) fn new(
        driver: &Arc<D>,
        opened: Opened<D::Handle>,
        time: SessionClock,
        sent: Timestamp,
    ) -> Self {
        Self {
            id: SessionId::new(),
            driver: Arc::clone(driver),
            handle: opened.handle,
            deadline: AtomicDeadline::new(opened.deadline),
            state: Mutex::new(State::new(time.now())),
            renewal: tokio::sync::Mutex::new(None),
            renewed: AtomicU64::new(sent.as_nanos()),
            tried: AtomicU64::new(sent.as_nanos()),
            ended: Notify::new(),
            time,
        }
    }

    /// Returns the session's id within this process, for
    /// [`KeepAlive::Session`](crate::backend::KeepAlive::Session).
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns the driver's handle of the session, such as a lease id or a connection.
    #[must_use]
    pub fn handle(&self) -> &D::Handle {
        &self.handle
    }

    /// Returns the TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.time.ttl()
    }

    /// Returns the current time of the clock on which the session's deadline is measured.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.time.now()
    }

    /// Returns the deadline until which all locks of the session are valid. Renewals move it.
    #[must_use]
    pub fn valid_until(&self) -> Deadline {
        self.deadline.get()
    }

    /// Returns whether the session can still be used: it has not ended, and its deadline has not
    /// passed.
    #[must_use]
    pub fn is_live(&self) -> bool {
        // Read the clock first: see `AtomicDeadline::get`.
        let now = self.time.now();
        !self.deadline.get().is_past(now) && self.lock().end.is_none()
    }

    /// Waits until the session has ended. Waiters must stop waiting then, because the server has
    /// removed their entries.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.lock().end.is_some() {
                return;
            }
            ended.await;
        }
    }

    /// Moves the deadline without a renewal, for drivers whose every transaction extends the
    /// session. The server must be known to keep the session until `deadline`.
    ///
    /// Returns `false` and changes nothing if the current deadline has passed.
    #[must_use]
    pub fn extend(&self, deadline: Deadline) -> bool {
        self.deadline.advance(deadline, self.time.now())
    }

    /// Ends the session in this process and notifies all holders in it. Call it when the server
    /// reports the end or the client detects it. Only the first reason is recorded.
    pub fn end(&self, reason: LossReason) {
        let notifiers: Vec<_> = {
            let mut state = self.lock();
            if state.end.is_some() {
                return;
            }
            state.end = Some(reason);
            state
                .claims
                .values()
                .filter_map(|claim_state| claim_state.holder.clone())
                .collect()
        };
        self.ended.notify_waiters();
        for notifier in notifiers {
            notifier.lost(reason);
        }
    }

    /// Ends the session if `error` is [`ErrorKind::Lost`].
    pub(super) fn end_if_lost(&self, error: &Error) {
        if error.kind() == ErrorKind::Lost {
            self.end(LossReason::SessionEnded);
        }
    }

    /// Ends the session in this process and on the server.
    pub(super) async fn close(&self, reason: LossReason) -> Result<()> {
        self.end(reason);
        if std::mem::replace(&mut self.lock().closing, true) {
            return Ok(());
        }
        self.driver.close(&self.handle).await
    }

    pub(super) fn hold(&self, name: &D::Claim, notifier: LossNotifier) -> bool {
        let mut state = self.lock();
        if state.end.is_some() {
            return false;
        }
        let state = &mut *state;
        if let Some(claim_state) = state.claims.get_mut(name)
            && claim_state.holder.replace(notifier).is_none()
        {
            state.pending -= 1;
        }
        true
    }

    pub(super) fn remove(&self, name: &D::Claim, number: u64) {
        let now = self.time.now();
        let mut state = self.lock();
        if state
            .claims
            .get(name)
            .is_some_and(|claim_state| claim_state.number == number)
            && let Some(claim_state) = state.claims.remove(name)
        {
            state.weight -= self.driver.weight(name);
            if claim_state.holder.is_none() {
                state.pending -= 1;
            }
            if state.claims.is_empty() {
                state.idle_since = now;
            }
        }
    }

    pub(super) fn tombstone(&self, name: &D::Claim) {
        self.lock().tombstones.insert(name.clone());
        self.mark_uncertain();
    }

    pub(super) fn mark_uncertain(&self) {
        let now = self.time.now();
        let tried = Timestamp::from_nanos(self.tried.load(Ordering::Relaxed));
        let mut state = self.lock();
        // An earlier operation that is not yet checked is checked first. Otherwise operations that
        // follow each other closely would put off the check for ever.
        if state.uncertain_since.is_none_or(|since| since <= tried) {
            state.uncertain_since = Some(now);
        }
    }

    pub(super) fn claims(&self) -> usize {
        self.lock().claims.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.lock().weight >= self.driver.capacity()
    }

    pub(super) fn driver(&self) -> &D {
        &self.driver
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<D::Claim>> {
        // Every change under the mutex is complete when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: SessionDriver> fmt::Debug for Session<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("ttl", &self.ttl())
            .field("handle", &self.handle)
            .field("claims", &state.claims.len())
            .field("end", &state.end)
            .finish_non_exhaustive()
    }
}

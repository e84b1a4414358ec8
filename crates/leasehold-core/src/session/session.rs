//! [`Session`]: its deadline, its renewal, its end.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    backend::{lease::SessionId, request::LossNotifier},
    clock::{AtomicDeadline, Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    session::{
        Claim, Opened, SessionClock, SessionDriver, keep_alive, reconcile,
        state::{ClaimState, State},
    },
    signal::LossReason,
    ttl::Ttl,
};

/// An acquisition renews its session if the last renewal is older than this part of the TTL, so
/// that a new lock has nearly its whole TTL left.
const STALE_AFTER: u32 = 10;

/// A session on the server, shared by all locks of one TTL.
pub struct Session<D: SessionDriver> {
    id: SessionId,
    driver: Arc<D>,
    handle: D::Handle,
    pub(super) time: SessionClock,
    pub(super) deadline: AtomicDeadline,
    state: Mutex<State<D::Claim>>,
    /// Serialises renewals. It stores the last outcome: a task that waited for a renewal which was
    /// sent after its own request returns that outcome instead of renewing again.
    renewal: tokio::sync::Mutex<Option<(Timestamp, Result<()>)>>,
    /// The time at which the last successful renewal was sent.
    pub(super) renewed: AtomicU64,
    /// The time at which the last renewal was started, successful or not.
    pub(super) tried: AtomicU64,
    ended: Notify,
}

impl<D: SessionDriver> Session<D> {
    pub(super) fn start(
        driver: &Arc<D>,
        opened: Opened<D::Handle>,
        time: SessionClock,
        sent: Timestamp,
    ) -> Arc<Self> {
        let session = Arc::new(Self {
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
        });
        // The task ends with the session, or when the last reference to the session is dropped.
        drop(tokio::spawn(keep_alive::keep(Arc::downgrade(&session))));
        session
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

    /// Renews the session. Concurrent calls share one renewal.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`] if the session has ended, which is final, and otherwise the
    /// driver's error.
    ///
    /// # Cancel safety
    /// Not cancel safe: the future must be driven to completion.
    pub async fn renew(&self) -> Result<()> {
        let asked = self.time.now();
        let mut last = self.renewal.lock().await;
        if let Some((sent, outcome)) = &*last
            && *sent >= asked
        {
            return outcome.clone();
        }
        if !self.is_live() {
            self.end(LossReason::Expired);
            return Err(over());
        }
        let sent = self.time.now();
        self.tried.store(sent.as_nanos(), Ordering::Relaxed);
        let outcome = match self.driver.renew(&self.handle, &self.time).await {
            Ok(deadline) => self.renewed_until(deadline, sent).await,
            Err(error) => {
                self.end_if_lost(&error);
                Err(error)
            }
        };
        *last = Some((sent, outcome.clone()));
        outcome
    }

    /// Moves the deadline after a renewal that was sent at `sent`, and reconciles.
    ///
    /// If reconciliation has failed for a whole TTL, it is tried before the deadline is moved, and
    /// the deadline stays if it fails again. The holders may have lost locks that the client cannot
    /// list.
    async fn renewed_until(&self, deadline: Deadline, sent: Timestamp) -> Result<()> {
        let overdue = self
            .lock()
            .unreconciled_since
            .is_some_and(|since| sent.since(since) >= self.ttl().as_duration());
        if overdue {
            reconcile::reconcile(self).await.map_err(|error| {
                let message =
                    "the session's locks could not be listed for a whole TTL; they are lost at their deadline";
                Error::new(ErrorKind::Unavailable, message).with_source(error)
            })?;
        }
        if !self.deadline.advance(deadline, self.time.now()) {
            self.end(LossReason::Expired);
            return Err(over());
        }
        self.renewed.store(sent.as_nanos(), Ordering::Relaxed);
        if !overdue {
            // `reconcile` logs the failure, and the next renewal takes it into account.
            drop(reconcile::reconcile(self).await);
        }
        // Reconciliation may have found that the session has ended.
        if self.is_live() { Ok(()) } else { Err(over()) }
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
        let sinks: Vec<_> = {
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
        for sink in sinks {
            sink.lost(reason);
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

    /// Renews the session in the background, or before returning if less than half of its TTL is
    /// left.
    pub(super) async fn renew_if_stale(self: &Arc<Self>) -> Result<()> {
        let (now, ttl) = (self.time.now(), self.ttl().as_duration());
        let renewed = Timestamp::from_nanos(self.renewed.load(Ordering::Relaxed));
        if now.since(renewed) < ttl / STALE_AFTER {
            return Ok(());
        }
        if self.deadline.get().remaining(now) < ttl / 2 {
            return self.renew().await;
        }
        let tried = self.tried.swap(now.as_nanos(), Ordering::Relaxed);
        if now.since(Timestamp::from_nanos(tried)) >= ttl / STALE_AFTER {
            let session = Arc::clone(self);
            // The outcome is not needed: the acquisition reads the current deadline, and holders
            // renew.
            drop(tokio::spawn(async move { session.renew().await }));
        }
        Ok(())
    }

    /// Registers a name.
    pub(super) fn claim(self: &Arc<Self>, name: D::Claim) -> Result<Claimed<D>> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Ok(Claimed::Ended);
        }
        // The session may have filled up since it was chosen.
        if state.weight >= self.driver.capacity() {
            return Ok(Claimed::Full);
        }
        if state.claims.contains_key(&name)
            || state.deleting.contains(&name)
            || state.tombstones.contains(&name)
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                "this session already has a claim of this name",
            ));
        }
        state.next += 1;
        let claim_state = ClaimState {
            number: state.next,
            holder: None,
            frozen: Arc::default(),
        };
        let (number, frozen) = (claim_state.number, Arc::clone(&claim_state.frozen));
        state.pending += 1;
        if let Some(touched) = &mut state.touched {
            touched.insert(name.clone());
        }
        state.weight += self.driver.weight(&name);
        state.claims.insert(name.clone(), claim_state);
        drop(state);
        Ok(Claimed::Place(Claim::new(
            Arc::clone(self),
            name,
            number,
            frozen,
        )))
    }

    pub(super) fn hold(&self, name: &D::Claim, sink: LossNotifier) -> bool {
        let mut state = self.lock();
        if state.end.is_some() {
            return false;
        }
        let state = &mut *state;
        if let Some(claim_state) = state.claims.get_mut(name)
            && claim_state.holder.replace(sink).is_none()
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
    }

    pub(super) fn mark_uncertain(&self) {
        self.lock().uncertain = true;
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

/// The outcome of [`Session::claim`].
pub(super) enum Claimed<D: SessionDriver> {
    Place(Claim<D>),
    /// The session has reached the capacity that the driver allows.
    Full,
    Ended,
}

fn over() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the session has ended: it was closed, or it was not renewed before its deadline",
    )
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

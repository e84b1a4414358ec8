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
    backend::SessionId,
    clock::{AtomicDeadline, Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    request::LossNotifier,
    session::{
        Claim, Opened, SessionDriver, SessionTime, keep_alive, reconcile,
        state::{Standing, State},
    },
    signal::LossReason,
    ttl::Ttl,
};

/// Who acquires in a session that was not renewed for this part of its TTL renews it, so that a new
/// lock has nearly all of its TTL before it.
const FRESHEN_AFTER: u32 = 10;

/// One session on the server, shared by all locks of one TTL.
pub struct Session<D: SessionDriver> {
    id: SessionId,
    driver: Arc<D>,
    handle: D::Handle,
    pub(super) time: SessionTime,
    pub(super) deadline: AtomicDeadline,
    state: Mutex<State<D::Claim>>,
    /// One renewal at a time; who waited for one that was sent after it asked has its outcome too.
    renewal: tokio::sync::Mutex<Option<(Timestamp, Result<()>)>>,
    /// When the last renewal that succeeded was sent.
    pub(super) renewed: AtomicU64,
    /// When the last renewal was started, successful or not.
    pub(super) tried: AtomicU64,
    ended: Notify,
}

impl<D: SessionDriver> Session<D> {
    pub(super) fn start(
        driver: &Arc<D>,
        opened: Opened<D::Handle>,
        time: SessionTime,
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
        // Ends by itself with the session, or when nobody has the session any more.
        drop(tokio::spawn(keep_alive::keep(Arc::downgrade(&session))));
        session
    }

    /// Its name within the process, for [`KeepAlive::Session`](crate::KeepAlive::Session).
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// How the server is spoken to about it.
    #[must_use]
    pub fn handle(&self) -> &D::Handle {
        &self.handle
    }

    /// Its TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.time.ttl()
    }

    /// The present, on the clock that its deadline is of.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.time.now()
    }

    /// Until when all in it may be believed in. Live.
    #[must_use]
    pub fn valid_until(&self) -> Deadline {
        self.deadline.get()
    }

    /// Whether it can still be used: neither ended nor past its deadline.
    #[must_use]
    pub fn is_live(&self) -> bool {
        // The clock first: see `AtomicDeadline::get`.
        let now = self.time.now();
        !self.deadline.get().is_past(now) && self.lock().end.is_none()
    }

    /// Completes when it has ended. Waiters must stop waiting then: what they had on the server is
    /// gone.
    ///
    /// # Cancel safety
    /// Safe.
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

    /// Renews it, whoever asks: those who ask at the same time share one renewal.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if it is over, which is final; otherwise as the driver fails.
    ///
    /// # Cancel safety
    /// None: drive it to its end.
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
    /// A session whose reconciliation has failed for a whole TTL reconciles first, and its deadline
    /// stays if that fails again: its holders may have lost what the server no longer shows us.
    async fn renewed_until(&self, deadline: Deadline, sent: Timestamp) -> Result<()> {
        let overdue = self
            .lock()
            .unreconciled_since
            .is_some_and(|since| sent.since(since) >= self.ttl().as_duration());
        if overdue {
            reconcile::reconcile(self).await.map_err(|error| {
                let message =
                    "what the session owns could not be read for a whole TTL: its locks end at their deadline";
                Error::new(ErrorKind::Unavailable, message).with_source(error)
            })?;
        }
        if !self.deadline.advance(deadline, self.time.now()) {
            self.end(LossReason::Expired);
            return Err(over());
        }
        self.renewed.store(sent.as_nanos(), Ordering::Relaxed);
        if !overdue {
            // A failure is logged there, and counts from the next renewal on.
            drop(reconcile::reconcile(self).await);
        }
        // That may have found that it is over.
        if self.is_live() { Ok(()) } else { Err(over()) }
    }

    /// The server is known to keep it until `deadline`: for drivers whose every transaction extends
    /// the session.
    ///
    /// `false`, and no change, if the deadline has passed by now.
    #[must_use]
    pub fn extend(&self, deadline: Deadline) -> bool {
        self.deadline.advance(deadline, self.time.now())
    }

    /// It is over: told by the server, or found out. All that hold in it are told. The first reason
    /// counts.
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
                .filter_map(|standing| standing.holder.clone())
                .collect()
        };
        self.ended.notify_waiters();
        for sink in sinks {
            sink.lost(reason);
        }
    }

    /// It is over if this error says so.
    pub(super) fn end_if_lost(&self, error: &Error) {
        if error.kind() == ErrorKind::Lost {
            self.end(LossReason::SessionEnded);
        }
    }

    /// Ends it here and on the server.
    pub(super) async fn close(&self, reason: LossReason) -> Result<()> {
        self.end(reason);
        if std::mem::replace(&mut self.lock().closing, true) {
            return Ok(());
        }
        self.driver.close(&self.handle).await
    }

    /// Renews it in the background, or here if there is little left.
    pub(super) async fn freshen(self: &Arc<Self>) -> Result<()> {
        let (now, ttl) = (self.time.now(), self.ttl().as_duration());
        let renewed = Timestamp::from_nanos(self.renewed.load(Ordering::Relaxed));
        if now.since(renewed) < ttl / FRESHEN_AFTER {
            return Ok(());
        }
        if self.deadline.get().remaining(now) < ttl / 2 {
            return self.renew().await;
        }
        let tried = self.tried.swap(now.as_nanos(), Ordering::Relaxed);
        if now.since(Timestamp::from_nanos(tried)) >= ttl / FRESHEN_AFTER {
            let session = Arc::clone(self);
            // Nothing depends on its outcome: the deadline is live, and who holds renews.
            drop(tokio::spawn(async move { session.renew().await }));
        }
        Ok(())
    }

    /// Claims a name.
    pub(super) fn claim(self: &Arc<Self>, name: D::Claim) -> Result<Claimed<D>> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Ok(Claimed::Ended);
        }
        // It may have filled up since it was chosen.
        if state.weight >= self.driver.capacity() {
            return Ok(Claimed::Full);
        }
        if state.claims.contains_key(&name)
            || state.disowning.contains(&name)
            || state.retired.contains(&name)
        {
            return Err(Error::new(
                ErrorKind::Mismatch,
                "this session has it already",
            ));
        }
        state.next += 1;
        let standing = Standing {
            number: state.next,
            holder: None,
            frozen: Arc::default(),
        };
        let (number, frozen) = (standing.number, Arc::clone(&standing.frozen));
        state.pending += 1;
        if let Some(touched) = &mut state.touched {
            touched.insert(name.clone());
        }
        state.weight += self.driver.weight(&name);
        state.claims.insert(name.clone(), standing);
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
        if let Some(standing) = state.claims.get_mut(name)
            && standing.holder.replace(sink).is_none()
        {
            state.pending -= 1;
        }
        true
    }

    pub(super) fn forget(&self, name: &D::Claim, number: u64) {
        let now = self.time.now();
        let mut state = self.lock();
        if state
            .claims
            .get(name)
            .is_some_and(|standing| standing.number == number)
            && let Some(standing) = state.claims.remove(name)
        {
            state.weight -= self.driver.weight(name);
            if standing.holder.is_none() {
                state.pending -= 1;
            }
            if state.claims.is_empty() {
                state.idle_since = now;
            }
        }
    }

    pub(super) fn retire(&self, name: &D::Claim) {
        self.lock().retired.insert(name.clone());
    }

    pub(super) fn doubt(&self) {
        self.lock().doubt = true;
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

/// How a claim went.
pub(super) enum Claimed<D: SessionDriver> {
    Place(Claim<D>),
    /// As many claims as the driver allows are in it.
    Full,
    Ended,
}

fn over() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the session is over: its deadline came before a renewal did, or it was ended",
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

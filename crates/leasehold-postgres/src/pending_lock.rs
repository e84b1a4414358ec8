//! [`PendingLock`]: an acquisition that is claimed in a session, its attempts and its waiting.
//!
//! A waiter occupies no backend of the server. It sets a marker, which is a shared advisory lock on
//! a key beside the lock's. The session holds the marker, so it disappears with the process. A
//! release notifies only if such a marker exists.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    ErrorKind, FencingToken, Result,
    backend::{Lease, Request},
    session::{Claim, Sessions, cancelled},
};
use tokio::time::timeout;

use crate::{
    connection::Connector,
    error::{self, ERRORS},
    job::{AcquireJob, Job, JobResult, LockRequest, WaiterMarkers},
    keys::AdvisoryKey,
    lease::PostgresLease,
    session::{MarkerGuard, PostgresSessions, run},
    waiters::{Registration, WaiterRegistry},
};

/// The time before the next attempt if a marker could not be set, because another session was
/// checking for markers at that moment.
const MARKER_RETRY: Duration = Duration::from_millis(2);
/// The longest time between attempts while notifications do not work.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// An acquisition that is claimed in a session.
pub(crate) struct PendingLock {
    claim: Claim<PostgresSessions>,
    request: Request,
    lock_request: LockRequest,
    waiters: Arc<WaiterRegistry>,
    marker_guard: Option<MarkerGuard>,
}

/// The outcome of one attempt.
pub(crate) enum AttemptOutcome<R> {
    Granted(Arc<dyn Lease>),
    Refused(R),
}

/// A waiter whose markers are set and which is registered for notifications.
pub(crate) struct Waiter {
    pending: PendingLock,
    registration: Registration,
    generation: u64,
    /// The time after which it retries without a notification.
    pub(crate) poll_after: Duration,
}

impl PendingLock {
    /// Claims the request in a session, before anything is sent.
    pub(crate) async fn new(
        sessions: &Sessions<PostgresSessions>,
        waiters: &Arc<WaiterRegistry>,
        request: &Request,
        lock_request: &LockRequest,
    ) -> Result<Self> {
        let key = lock_request.key();
        let claimed = sessions
            .claim(request, |handle, _| handle.new_acquisition(key))
            .await;
        let claim = claimed.map_err(|error| ERRORS.named(error, "acquire"))?;
        Ok(Self {
            claim,
            request: request.clone(),
            lock_request: lock_request.clone(),
            waiters: Arc::clone(waiters),
            marker_guard: None,
        })
    }

    /// Makes one attempt, which leaves nothing on the server if it is refused.
    pub(crate) async fn attempt(self) -> Result<AttemptOutcome<Self>> {
        let acquire = self.job(None, self.request.waiting().yields);
        match run(&self.claim, "acquire", Job::Acquire(acquire)).await? {
            JobResult::Granted { key, token } => {
                self.granted(key, token).map(AttemptOutcome::Granted)
            }
            JobResult::Refused { .. } => Ok(AttemptOutcome::Refused(self)),
            _ => Err(ERRORS.unexpected("acquire")),
        }
    }

    /// Makes one attempt, and sets the markers of a waiter if it is refused.
    pub(crate) async fn attempt_to_wait(
        mut self,
        connector: &Connector,
    ) -> Result<AttemptOutcome<Waiter>> {
        let registration = self.waiters.register(self.lock_request.key());
        let listening = self
            .waiters
            .listen(connector.response_timeout(self.request.ttl()))
            .await;
        // No notification from here on is missed.
        let generation = registration.generation();
        let markers = self.lock_request.markers();
        let acquire = self.job(Some(markers), false);
        // The guard clears the markers, however the attempt ends.
        let marker_guard = self
            .marker_guard
            .take()
            .unwrap_or_else(|| MarkerGuard::new(&self.claim, &self.waiters, markers));
        let marked = match run(&self.claim, "acquire", Job::Acquire(acquire)).await {
            Ok(JobResult::Granted { key, token }) => {
                // The statement has cleared the markers.
                marker_guard.disarm();
                return self.granted(key, token).map(AttemptOutcome::Granted);
            }
            Ok(JobResult::Refused { marked }) => marked,
            Ok(_) => return Err(ERRORS.unexpected("acquire")),
            Err(error) => {
                if error.kind() == ErrorKind::Indeterminate {
                    // The task that handles the late answer clears the markers.
                    marker_guard.disarm();
                }
                return Err(error);
            }
        };
        // Only one of two may be set. Both are then cleared and set again together.
        self.marker_guard = Some(marker_guard).filter(|_| marked);
        let longest = connector
            .config
            .fallback_poll_interval
            .min(self.request.ttl().as_duration() / 8);
        let poll_after = match (marked, listening) {
            (false, _) => MARKER_RETRY,
            // No notification will come.
            (true, Err(_)) => POLL_INTERVAL.min(longest),
            (true, Ok(())) => longest,
        };
        Ok(AttemptOutcome::Refused(Waiter {
            pending: self,
            registration,
            generation,
            poll_after,
        }))
    }

    fn job(&self, markers: Option<WaiterMarkers>, yielding: bool) -> AcquireJob {
        AcquireJob {
            acquisition: *self.claim.name(),
            lock_request: self.lock_request.clone(),
            markers,
            yielding,
        }
    }

    /// Returns the lease, if its session still lives. Otherwise releases the lock in the
    /// background.
    fn granted(self, key: AdvisoryKey, token: Option<i64>) -> Result<Arc<dyn Lease>> {
        let Self {
            claim,
            request,
            lock_request,
            ..
        } = self;
        let semaphore = lock_request.semaphore();
        if claim.valid_until().is_past(request.now()) || !claim.hold(request.loss_notifier()) {
            drop(tokio::spawn(async move {
                let job = Job::Release {
                    acquisition: *claim.name(),
                    key,
                    semaphore,
                };
                if let Err(error) = run(&claim, "release", job).await {
                    tracing::debug!(target: "leasehold", %error, "could not release the lock; it ends with its session");
                }
            }));
            return Err(error::over("acquire"));
        }
        let token = token
            .and_then(|token| u64::try_from(token).ok())
            .map(FencingToken::new);
        Ok(Arc::new(PostgresLease::new(
            claim,
            request,
            (key, semaphore),
            token,
        )))
    }
}

impl Waiter {
    /// Waits for a notification, or until the next attempt is due.
    pub(crate) async fn notified(self) -> Result<PendingLock> {
        let Self {
            pending,
            registration,
            generation,
            poll_after,
        } = self;
        tokio::select! {
            _ = timeout(poll_after, registration.notified_since(generation)) => Ok(pending),
            () = pending.claim.session().ended() => Err(error::over("acquire")),
            () = pending.request.cancelled() => Err(cancelled()),
        }
    }
}

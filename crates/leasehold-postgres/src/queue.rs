//! [`PendingLock`]: an acquisition that has a place in a session, and how it waits there.
//!
//! A waiter holds no backend of the server. It shows itself by a sign, a shared advisory lock
//! beside the lock, held by its session, so that it dies with the process. Who releases looks for
//! the sign, and only then notifies.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    ErrorKind, FencingToken, Result,
    backend::{Lease, Request},
    session::{Claim, Sessions, cancelled},
};
use tokio::time::timeout;

use crate::{
    batch::{Done, Job, Take, WaiterMarkers, Want},
    connection::Link,
    error::{self, named},
    keys::AdvisoryKey,
    lease::PostgresLease,
    session::{MarkerGuard, PostgresSessions, run},
    waiters::{Registration, WaiterRegistry},
};

/// Before the next attempt where somebody was looking for markers at the same moment, or nobody
/// would wake.
const SOON: Duration = Duration::from_millis(2);
const UNWOKEN: Duration = Duration::from_millis(100);

/// An acquisition that has a place in a session.
pub(crate) struct PendingLock {
    claim: Claim<PostgresSessions>,
    request: Request,
    want: Want,
    waiters: Arc<WaiterRegistry>,
    signs_up: Option<MarkerGuard>,
}

/// The outcome of one attempt.
pub(crate) enum Tried<R> {
    Granted(Arc<dyn Lease>),
    Refused(R),
}

/// A waiter: its markers are up and its wake is armed.
pub(crate) struct Waiter {
    pending: PendingLock,
    waiting: Registration,
    generation: u64,
    /// When it looks by itself.
    pub(crate) net: Duration,
}

impl PendingLock {
    /// Claims a place for the request, before anything is sent.
    pub(crate) async fn new(
        sessions: &Sessions<PostgresSessions>,
        waiters: &Arc<WaiterRegistry>,
        request: &Request,
        want: &Want,
    ) -> Result<Self> {
        let key = want.key();
        let claimed = sessions.claim(request, |handle, _| handle.name(key)).await;
        let claim = claimed.map_err(|error| named(error, "acquire"))?;
        Ok(Self {
            claim,
            request: request.clone(),
            want: want.clone(),
            waiters: Arc::clone(waiters),
            signs_up: None,
        })
    }

    /// One attempt that leaves nothing if it is refused.
    pub(crate) async fn attempt(self) -> Result<Tried<Self>> {
        let take = self.take(None, self.request.yields_to_waiters());
        match run(&self.claim, "acquire", Job::Take(take)).await? {
            Done::Granted { key, token } => self.granted(key, token).map(Tried::Granted),
            Done::Refused { .. } => Ok(Tried::Refused(self)),
            _ => Err(error::protocol("acquire")),
        }
    }

    /// An attempt of one who waits.
    pub(crate) async fn attempt_to_wait(mut self, link: &Link) -> Result<Tried<Waiter>> {
        let waiting = self.waiters.on(self.want.key());
        let warm = self.waiters.warm(link.patience(self.request.ttl())).await;
        // What is told from here on is not missed.
        let generation = waiting.generation();
        let markers = self.want.markers();
        let take = self.take(Some(markers), false);
        // However it ends, who puts them up sees to them.
        let signs_up = self
            .signs_up
            .take()
            .unwrap_or_else(|| MarkerGuard::new(&self.claim, &self.waiters, markers));
        let signed = match run(&self.claim, "acquire", Job::Take(take)).await {
            Ok(Done::Granted { key, token }) => {
                // The statement has taken the markers down.
                signs_up.disarm();
                return self.granted(key, token).map(Tried::Granted);
            }
            Ok(Done::Refused { signed }) => signed,
            Ok(_) => return Err(error::protocol("acquire")),
            Err(error) => {
                if error.kind() == ErrorKind::Indeterminate {
                    // Whoever sees to the late answer sees to the markers.
                    signs_up.disarm();
                }
                return Err(error);
            }
        };
        // One of two may be up: then they go, and are put up again together.
        self.signs_up = Some(signs_up).filter(|_| signed);
        let longest = link
            .config
            .fallback_poll_interval
            .min(self.request.ttl().as_duration() / 8);
        let net = match (signed, warm) {
            (false, _) => SOON,
            // Nobody waiters it.
            (true, Err(_)) => UNWOKEN.min(longest),
            (true, Ok(())) => longest,
        };
        Ok(Tried::Refused(Waiter {
            pending: self,
            waiting,
            generation,
            net,
        }))
    }

    fn take(&self, markers: Option<WaiterMarkers>, yielding: bool) -> Take {
        Take {
            name: *self.claim.name(),
            want: self.want.clone(),
            markers,
            yielding,
        }
    }

    /// Makes a lease of it, if its session still stands; otherwise, in the background, gives it
    /// back.
    fn granted(self, key: AdvisoryKey, token: Option<i64>) -> Result<Arc<dyn Lease>> {
        let Self {
            claim,
            request,
            want,
            ..
        } = self;
        let semaphore = want.semaphore();
        if claim.valid_until().is_past(request.now()) || !claim.hold(request.loss_notifier()) {
            drop(tokio::spawn(async move {
                let job = Job::GiveBack {
                    name: *claim.name(),
                    key,
                    semaphore,
                };
                if let Err(error) = run(&claim, "release", job).await {
                    tracing::debug!(target: "leasehold", %error, "not given back; it ends with its session");
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
    /// Completes when the next attempt makes sense.
    pub(crate) async fn woken(self) -> Result<PendingLock> {
        let Self {
            pending,
            waiting,
            generation,
            net,
        } = self;
        tokio::select! {
            _ = timeout(net, waiting.told_since(generation)) => Ok(pending),
            () = pending.claim.session().ended() => Err(error::over("acquire")),
            () = pending.request.cancelled() => Err(cancelled()),
        }
    }
}

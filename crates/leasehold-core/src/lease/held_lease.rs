//! [`HeldLease`]: the state of one granted lease, shared by its guards, its views and the renewer.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    backend::{contract::KeepAlive, request::Request},
    client::{
        acquire::Grant, asker::Asker, complete_on_drop::CompleteOnDrop, handle::Client,
        local_queue::Place, release,
    },
    clock::{AtomicDeadline, Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    lease::signal::{LossReason, Signal},
    lock::{guard::OwnedLease, options::Renewal},
    panics::{ContainedLease, contain},
    telemetry::{self, Span, Traced},
};

/// The longest sleep of a wait for a deadline. The clock is read again after it, because timers
/// stand still while the machine is suspended and the clock does not.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The state of one granted lease.
#[derive(Debug)]
pub(crate) struct HeldLease {
    pub(crate) client: Arc<Client>,
    pub(crate) lease: ContainedLease,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) request: Request,
    pub(crate) renewal: Renewal,
    /// The task or thread that acquired the lock.
    pub(crate) asker: Asker,
    token: Option<FencingToken>,
    /// The deadline of a manually renewed lock, if its session keeps the lease valid for longer.
    limit: Option<AtomicDeadline>,
    place: Mutex<Option<Place>>,
    /// The state that views share. Set when the first view is created.
    facts: OnceLock<Arc<Facts>>,
    /// The parent of all cancellation tokens of this lease. Cancelled when the lease is lost.
    lost: OnceLock<CancellationToken>,
    /// The number of guards that share this lease through re-entrancy.
    guards: AtomicUsize,
    /// The key of this lease in the renewer's schedule, together with `due`.
    pub(crate) id: u64,
    pub(crate) due: AtomicU64,
    pub(crate) renewing: AtomicBool,
    span: Span,
    since: telemetry::Since,
}

/// The part of a lease's state that outlives it, for views.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) request: Request,
    pub(crate) token: Option<FencingToken>,
    deadline: OnceLock<Deadline>,
}

impl Facts {
    /// Returns the last deadline of a lease that has ended.
    pub(crate) fn last_deadline(&self) -> Deadline {
        self.deadline
            .get()
            .copied()
            .unwrap_or(Deadline::at(Timestamp::from_nanos(0)))
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if let Some(facts) = self.facts.get() {
            facts.deadline.get_or_init(|| self.deadline());
        }
    }
}

impl HeldLease {
    /// Turns a grant into a lease that a guard can own, and starts its renewals.
    pub(crate) fn begin(mut grant: Grant<'_>, renewal: Renewal) -> OwnedLease {
        let (client, request, token, keep_alive) = (
            grant.client,
            grant.request.clone(),
            grant.token,
            grant.keep_alive,
        );
        let limit = match (renewal, keep_alive) {
            (Renewal::Manual, KeepAlive::Session(_)) => Some(AtomicDeadline::new(Deadline::at(
                request.now() + request.ttl().as_duration(),
            ))),
            _ => None,
        };
        let span = Span::of(|| {
            tracing::debug_span!(
                target: "leasehold",
                "hold",
                backend = client.capabilities.backend,
                key = %request.key(),
                mode = %request.mode(),
                token = token.map(FencingToken::get),
                outcome = tracing::field::Empty,
            )
        });
        let since = telemetry::hold_began(client);
        // No code between here and the guard can panic.
        let (lease, place) = grant.hand_over();
        let owned = OwnedLease::new(Arc::new(Self {
            lease,
            keep_alive,
            renewal,
            asker: Asker::current(),
            token,
            limit,
            place: Mutex::new(place),
            facts: OnceLock::new(),
            lost: OnceLock::new(),
            guards: AtomicUsize::new(1),
            id: client.next_hold_id(),
            due: AtomicU64::new(0),
            renewing: AtomicBool::new(false),
            client: Arc::clone(client),
            request,
            span,
            since,
        }));
        client.renewer.add(owned.hold());
        owned
    }

    pub(crate) fn signal(&self) -> &Signal {
        self.request.signal()
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    pub(crate) fn facts(&self) -> &Arc<Facts> {
        self.facts.get_or_init(|| {
            Arc::new(Facts {
                request: self.request.clone(),
                token: self.token,
                deadline: OnceLock::new(),
            })
        })
    }

    /// Returns a token that is cancelled when the lease is lost.
    pub(crate) fn cancellation_token(&self) -> CancellationToken {
        let lost = self.lost.get_or_init(CancellationToken::new);
        // The lease may have been lost before the token existed.
        if self.signal().loss().is_some() {
            lost.cancel();
        }
        lost.child_token()
    }

    pub(crate) fn deadline(&self) -> Deadline {
        let lease = self.lease.valid_until();
        self.limit
            .as_ref()
            .map_or(lease, |limit| limit.get().min(lease))
    }

    pub(crate) fn remaining(&self) -> Duration {
        let now = self.request.now();
        if self.signal().is_live() {
            self.deadline().remaining(now)
        } else {
            Duration::ZERO
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        // Read the clock before the deadline: see `AtomicDeadline::get`.
        let now = self.request.now();
        self.signal().is_live() && !self.deadline().is_past(now)
    }

    pub(crate) fn loss(self: &Arc<Self>) -> Option<LossReason> {
        if !self.is_held() && self.signal().is_live() {
            self.lose(LossReason::Expired);
        }
        self.signal().loss()
    }

    /// Completes when the lease is lost, or with `None` when it is released.
    pub(crate) async fn ended(self: &Arc<Self>) -> Option<LossReason> {
        self.ended_before(Duration::ZERO).await
    }

    /// Completes like [`ended`](Self::ended), but `early` before the deadline. The lease is then
    /// still held.
    pub(crate) async fn ended_before(self: &Arc<Self>, early: Duration) -> Option<LossReason> {
        let longest =
            (self.request.ttl().as_duration() / 10).clamp(Duration::from_millis(1), LONGEST_SLEEP);
        loop {
            let now = self.request.now();
            let left = self.deadline().remaining(now).saturating_sub(early);
            if left.is_zero() && self.signal().is_live() {
                if early.is_zero() {
                    self.lose(LossReason::Expired);
                } else {
                    return Some(LossReason::Expired);
                }
            }
            tokio::select! {
                biased;
                end = self.signal().ended() => return end,
                () = tokio::time::sleep(left.min(longest)) => {}
            }
        }
    }

    /// Renews now, for the renewal task or for a caller of `renew`.
    pub(crate) async fn renew(self: &Arc<Self>) -> Result<()> {
        if let Some(reason) = self.loss() {
            return Err(self.lost_error(reason));
        }
        let renewed = self.renew_lease().await;
        telemetry::renewed(&self.client, &renewed);
        renewed
    }

    async fn renew_lease(self: &Arc<Self>) -> Result<()> {
        let traced = Traced::of(telemetry::renew_span(
            &self.span,
            &self.client,
            &self.request,
            self.token,
        ));
        let renewing = CompleteOnDrop::short(&self.client, self.lease.renew());
        let sent = self.request.now();
        let renewed = self.on_renewed(sent, traced.span.around(renewing).await);
        traced.end(&renewed, "renewed");
        renewed
    }

    /// Applies the outcome of a renewal that was sent at `sent`.
    fn on_renewed(self: &Arc<Self>, sent: Timestamp, renewed: Result<()>) -> Result<()> {
        match &renewed {
            Ok(()) => {
                if let Some(limit) = &self.limit {
                    let to = Deadline::at(sent + self.request.ttl().as_duration());
                    if !limit.advance(to, self.request.now()) {
                        self.lose(LossReason::Expired);
                        return Err(self.lost_error(LossReason::Expired));
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Lost => {
                let late = self.deadline().is_past(self.request.now());
                self.lose(if late {
                    LossReason::Expired
                } else {
                    LossReason::Replaced
                });
            }
            Err(error) => {
                self.span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not renewed"));
            }
        }
        renewed
    }

    fn lost_error(&self, reason: LossReason) -> Error {
        Error::new(
            ErrorKind::Lost,
            format!("the lock `{}` was lost: {reason}", self.request.key()),
        )
        .with_backend(self.client.capabilities.backend)
    }

    /// Marks the lease as lost and cleans up. Has no effect if the lease is already lost or
    /// released.
    pub(crate) fn lose(self: &Arc<Self>, reason: LossReason) {
        if self.signal().lose(reason) {
            self.after_loss();
        }
    }

    /// Cleans up after a loss: notifies waiters, stops renewals, and releases the lock in the
    /// background. Only the first call has an effect.
    pub(crate) fn after_loss(self: &Arc<Self>) {
        let Some(reason) = self.signal().loss() else {
            return;
        };
        if let Some(lost) = self.lost.get() {
            // This runs the wakers of foreign code, which may panic.
            contain(|| lost.cancel());
        }
        let was_kept = self.client.renewer.remove(self);
        // The next local waiter starts at once.
        drop(self.take_place());
        if was_kept {
            self.end();
            telemetry::lost(&self.client, reason);
            if reason == LossReason::ClientClosed {
                self.span.emit(|span| {
                    tracing::debug!(target: "leasehold", parent: span, "given back: the client closes");
                });
            } else {
                self.warn_of_loss(reason);
            }
            // The backend may still have the lock: the local deadline is earlier than the
            // server's, and the session may still be alive.
            let (client, lease, span) = (
                Arc::clone(&self.client),
                self.lease.clone(),
                self.release_span(),
            );
            self.client
                .in_background(async move { release::give_back(&client, lease, span).await });
        }
    }

    fn warn_of_loss(&self, reason: LossReason) {
        self.span.emit(|span| {
            tracing::warn!(
                target: "leasehold",
                parent: span,
                backend = self.client.capabilities.backend,
                key = %self.request.key(),
                token = self.token.map(FencingToken::get),
                %reason,
                "lock lost"
            );
        });
    }

    /// Creates a span for a release of this lease.
    pub(crate) fn release_span(&self) -> Span {
        telemetry::release_span(&self.span, &self.client, &self.request, self.token)
    }

    /// Records that the lease has ended. Called once, by its release or its loss.
    pub(crate) fn end(&self) {
        match self.signal().loss() {
            Some(reason) => telemetry::say(&self.span, tracing::field::display(reason)),
            None => telemetry::say(&self.span, "released"),
        }
        telemetry::hold_ended(&self.client, &self.since);
    }

    pub(crate) fn take_place(&self) -> Option<Place> {
        self.place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(crate) fn begin_release(&self) {
        if let Some(place) = &mut *self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            place.begin_release();
        }
    }

    /// Adds a guard. Returns `false` if the last guard is already gone.
    pub(crate) fn share(&self) -> bool {
        self.guards
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count > 0).then_some(count + 1)
            })
            .is_ok()
    }

    /// Removes a guard. Returns whether it was the last.
    pub(crate) fn unshare(&self) -> bool {
        self.guards.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

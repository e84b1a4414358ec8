//! [`HeldLease`]: one grant while this process believes in it, whoever looks at it (guards, the renewer, the gate).

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
    telemetry::{self, Span, TracedOp},
};

/// How often at least a wait for a deadline looks at the clock again: timers sleep through a
/// suspend, the clock does not.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct HeldLease {
    pub(crate) client: Arc<Client>,
    pub(crate) lease: ContainedLease,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) request: Request,
    pub(crate) renewal: Renewal,
    /// Who was granted it.
    pub(crate) asker: Asker,
    token: Option<FencingToken>,
    /// The deadline of a manually renewed lock whose lease lives as long as its session.
    limit: Option<AtomicDeadline>,
    place: Mutex<Option<Place>>,
    /// What its views know, once there is one.
    facts: OnceLock<Arc<Facts>>,
    /// Cancelled when it is lost; the parent of the tokens of its users.
    lost: OnceLock<CancellationToken>,
    /// How many guards share this hold (re-entrancy).
    guards: AtomicUsize,
    /// The renewer's: this hold's place in its schedule.
    pub(crate) id: u64,
    pub(crate) due: AtomicU64,
    pub(crate) renewing: AtomicBool,
    span: Span,
    since: telemetry::StartTime,
}

/// What is known of a hold also when it is over.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) request: Request,
    pub(crate) token: Option<FencingToken>,
    deadline: OnceLock<Deadline>,
}

impl Facts {
    /// Its deadline, once it is over.
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
    /// Turns a grant into what a guard owns.
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
        // Nothing between here and the guard can panic.
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

    /// A token that is cancelled when it is lost.
    pub(crate) fn cancellation_token(&self) -> CancellationToken {
        let lost = self.lost.get_or_init(CancellationToken::new);
        // It may have been lost before there was a token to cancel.
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
        // The clock first: see `AtomicDeadline::get`.
        let now = self.request.now();
        self.signal().is_live() && !self.deadline().is_past(now)
    }

    pub(crate) fn loss(self: &Arc<Self>) -> Option<LossReason> {
        if !self.is_held() && self.signal().is_live() {
            self.lose(LossReason::Expired);
        }
        self.signal().loss()
    }

    /// Completes when the hold is lost; with `None` when it is released.
    pub(crate) async fn ended(self: &Arc<Self>) -> Option<LossReason> {
        self.ended_before(Duration::ZERO).await
    }

    /// As [`ended`](Self::ended), but tells of the deadline this much early.
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

    /// Renews now, whoever asks.
    pub(crate) async fn renew(self: &Arc<Self>) -> Result<()> {
        if let Some(reason) = self.loss() {
            return Err(self.lost_error(reason));
        }
        let renewed = self.renew_lease().await;
        telemetry::renewed(&self.client, &renewed);
        renewed
    }

    async fn renew_lease(self: &Arc<Self>) -> Result<()> {
        let traced = TracedOp::of(telemetry::renew_span(
            &self.span,
            &self.client,
            &self.request,
            self.token,
        ));
        let renewing = CompleteOnDrop::short(&self.client, self.lease.renew());
        let sent = self.request.now();
        let renewed = self.judge(sent, traced.span.around(renewing).await);
        traced.end(&renewed, "renewed");
        renewed
    }

    /// Takes the outcome of a renewal that was sent then.
    fn judge(self: &Arc<Self>, sent: Timestamp, renewed: Result<()>) -> Result<()> {
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

    /// Marks the hold as lost and lets go of everything. The first reason counts; after a release
    /// nothing happens.
    pub(crate) fn lose(self: &Arc<Self>, reason: LossReason) {
        if self.signal().lose(reason) {
            self.after_loss();
        }
    }

    /// What follows a loss, whoever noticed it. Does its work once.
    pub(crate) fn after_loss(self: &Arc<Self>) {
        let Some(reason) = self.signal().loss() else {
            return;
        };
        if let Some(lost) = self.lost.get() {
            // Wakes whoever waits for it.
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
            // The backend may still have it as ours: an early local deadline, or a session that
            // lives on.
            let (client, lease, span) = (
                Arc::clone(&self.client),
                self.lease.clone(),
                self.release_span(),
            );
            self.client.in_background(async move {
                release::release_detached(&client, lease, span).await
            });
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

    /// A span for a release of it.
    pub(crate) fn release_span(&self) -> Span {
        telemetry::release_span(&self.span, &self.client, &self.request, self.token)
    }

    /// It is held no longer. Called once: by its release or its loss, whichever is first.
    pub(crate) fn end(&self) {
        match self.signal().loss() {
            Some(reason) => telemetry::record_outcome(&self.span, tracing::field::display(reason)),
            None => telemetry::record_outcome(&self.span, "released"),
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

    /// Adds a guard to a hold that still has one.
    pub(crate) fn share(&self) -> bool {
        self.guards
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count > 0).then_some(count + 1)
            })
            .is_ok()
    }

    /// Takes a guard away; whether it was the last.
    pub(crate) fn unshare(&self) -> bool {
        self.guards.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

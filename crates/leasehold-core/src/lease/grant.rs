//! [`CompleteOnDrop`], a call of a backend that is completed even if its caller is gone, and
//! [`Grant`], a lease that was granted and has no guard yet.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    backend::{
        attempt::Attempt,
        inspection::{Inspection, Pong, RevokeOutcome},
        lease::{BoxFuture, ContainedLease, KeepAlive, Lease, Released},
        record::RecordReading,
        request::Request,
    },
    context::ClientContext,
    error::{ErrorKind, Result},
    fencing::FencingToken,
    local_queue::Place,
    panics::Call,
    telemetry::{self, Span},
};

/// The delay before a failed release is retried. It doubles each time, until the lease expires.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The time for which releases are retried after the client starts to close.
const CLOSING: Duration = Duration::from_secs(2);

/// A future of a backend that completes in the background if the caller drops it.
///
/// If an acquisition is dropped, its request is cancelled, and a lock that is granted nevertheless
/// is released. An operation that panics ends with an error and is not polled again.
#[must_use]
pub(crate) struct CompleteOnDrop<'a, T: IntoLease> {
    context: &'a Arc<ClientContext>,
    /// The request to cancel, if the operation is an acquisition.
    request: Option<&'a Request>,
    operation: Option<Call<T>>,
}

impl<'a, T: IntoLease> CompleteOnDrop<'a, T> {
    pub(crate) fn acquisition(
        context: &'a Arc<ClientContext>,
        request: &'a Request,
        operation: impl FnOnce() -> BoxFuture<'static, Result<T>>,
    ) -> Self {
        Self {
            context,
            request: Some(request),
            operation: Some(Call::of(operation)),
        }
    }

    /// Wraps an operation that is not an acquisition and ends by itself.
    pub(crate) fn short(context: &'a Arc<ClientContext>, operation: Call<T>) -> Self {
        Self {
            context,
            request: None,
            operation: Some(operation),
        }
    }
}

impl<T: IntoLease> Future for CompleteOnDrop<'_, T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(operation) = &mut this.operation else {
            return Poll::Pending;
        };
        match Pin::new(operation).poll(cx) {
            Poll::Ready(outcome) => {
                this.operation = None;
                Poll::Ready(outcome.map_err(|error| {
                    let refusal = this
                        .context
                        .refusal()
                        .filter(|_| error.kind() == ErrorKind::Cancelled);
                    if let Some(refusal) = refusal {
                        refusal
                    } else if error.backend().is_none() {
                        error.with_backend(this.context.capabilities.backend)
                    } else {
                        error
                    }
                }))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: IntoLease> Drop for CompleteOnDrop<'_, T> {
    fn drop(&mut self) {
        let Some(operation) = self.operation.take() else {
            return;
        };
        let request = self.request.cloned();
        if let Some(request) = &request {
            request.cancel();
        }
        // Spawn the operation itself: if this value were spawned, a runtime that is shutting down
        // would drop it again, without end.
        let context = Arc::clone(self.context);
        self.context.in_background(async move {
            if let (Some(lease), Some(request)) =
                (operation.await.ok().and_then(IntoLease::lease), request)
            {
                release_grant(&context, ContainedLease::new(lease), &request, None).await;
            }
        });
    }
}

/// The outcome of a backend's operation, with the lease to release if the caller is gone.
pub(crate) trait IntoLease: Send + 'static {
    fn lease(self) -> Option<Arc<dyn Lease>>;
}

impl IntoLease for Arc<dyn Lease> {
    fn lease(self) -> Option<Arc<dyn Lease>> {
        Some(self)
    }
}

impl IntoLease for Attempt {
    fn lease(self) -> Option<Arc<dyn Lease>> {
        match self {
            Self::Granted(lease) => Some(lease),
            Self::Contended(_) => None,
        }
    }
}

macro_rules! without_lease {
    ($($outcome:ty),*) => {$(
        impl IntoLease for $outcome {
            fn lease(self) -> Option<Arc<dyn Lease>> {
                None
            }
        }
    )*};
}
without_lease!((), u64, Inspection, RecordReading, RevokeOutcome, Pong);

/// The owner of a lease until its guard exists. Dropping it releases the lease.
pub(crate) struct Grant<'a> {
    pub(crate) context: &'a Arc<ClientContext>,
    pub(crate) request: Request,
    pub(crate) token: Option<FencingToken>,
    pub(crate) keep_alive: KeepAlive,
    lease: ContainedLease,
    place: Option<Place>,
    owned: bool,
}

impl<'a> Grant<'a> {
    pub(crate) fn of(
        context: &'a Arc<ClientContext>,
        request: Request,
        lease: Arc<dyn Lease>,
        place: Option<Place>,
    ) -> Result<Self> {
        let lease = ContainedLease::new(lease);
        let mut grant = Self {
            context,
            request,
            token: None,
            keep_alive: KeepAlive::PerLease,
            lease,
            place,
            owned: true,
        };
        if let Some(place) = &mut grant.place {
            place.granted();
        }
        let facts = grant
            .lease
            .facts()
            .map_err(|error| error.with_backend(context.capabilities.backend));
        (grant.token, grant.keep_alive) = facts?;
        Ok(grant)
    }

    /// Moves the lease to a new owner.
    pub(crate) fn hand_over(&mut self) -> (ContainedLease, Option<Place>) {
        self.owned = false;
        (self.lease.clone(), self.place.take())
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        if self.owned {
            let (context, lease, request, mut place) = (
                Arc::clone(self.context),
                self.lease.clone(),
                self.request.clone(),
                self.place.take(),
            );
            if let Some(place) = &mut place {
                place.released();
                place.begin_release();
            }
            self.context.in_background(async move {
                release_grant(&context, lease, &request, place).await;
            });
        }
    }
}

/// Releases a lease that has no guard. Retries until the release succeeds or the lease expires. The
/// place passes to the next task when the release is sent, or else answered.
pub(crate) async fn release_detached(
    context: &ClientContext,
    lease: ContainedLease,
    mut place: Option<Place>,
    span: Span,
) {
    let releasing = async {
        let mut operation = lease.release();
        let outcome = poll_fn(|cx| {
            let polled = Pin::new(&mut operation).poll(cx);
            if polled.is_ready() || context.capabilities.pipelined_release {
                drop(place.take());
            }
            polled
        })
        .await;
        retry_until_expired(context, &lease, outcome).await
    };
    let outcome = span.around(releasing).await;
    telemetry::release_ended(&span, &outcome);
    if let Err(error) = outcome {
        span.emit(|span| tracing::debug!(target: "leasehold", parent: span, %error, "not released; it expires"));
    }
}

/// Releases a grant that never had a guard; see [`release_detached`].
pub(crate) async fn release_grant(
    context: &ClientContext,
    lease: ContainedLease,
    request: &Request,
    place: Option<Place>,
) {
    let token = lease.facts().ok().and_then(|(token, _)| token);
    let span = telemetry::release_span(&Span::none(), context, request, token);
    release_detached(context, lease, place, span).await;
}

/// Retries a release with this outcome until it succeeds, cannot be retried, or the lease expires.
/// Once the client is closing, it stops after [`CLOSING`].
pub(super) async fn retry_until_expired(
    context: &ClientContext,
    lease: &ContainedLease,
    mut outcome: Result<Released>,
) -> Result<Released> {
    let mut pause = FIRST_PAUSE;
    let mut closed = pin!(async {
        context.requests.closing.cancelled().await;
        tokio::time::sleep(CLOSING).await;
    });
    let is_over = || lease.valid_until().is_past(context.requests.clock.now());
    while outcome.as_ref().is_err_and(crate::Error::is_retryable) && !is_over() {
        tokio::select! {
            () = &mut closed => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LONGEST_PAUSE.min(pause * 2);
        outcome = lease.release().await;
    }
    outcome
}

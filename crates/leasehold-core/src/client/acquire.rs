//! One acquisition: the local queue, the backend, and the guard.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use tokio::time::Instant;

use crate::{
    backend::{attempt::Attempt, request::Request},
    client::engine::{Client, Spec},
    error::{Error, ErrorKind, Result},
    key::LockKey,
    lease::{
        grant::{CompleteOnDrop, Grant},
        held_lease::{HeldLease, Renewal},
        release::OwnedLease,
        renewal::keep,
    },
    local_queue::Place,
    mode::Mode,
    panics::contain,
    runtime::Asker,
    telemetry::{self, AcquireTimer, Span, TracedOp},
};

/// The longest time that a single attempt waits for room for background operations.
const LONGEST_TRY_PAUSE: Duration = Duration::from_millis(100);

/// The time for which an acquisition waits while the lock is held.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    Not,
    AtMost(Duration),
    Forever,
}

impl Wait {
    /// Returns the outcome of a refused acquisition, for spans and metrics.
    pub(super) fn refusal(self) -> &'static str {
        match self {
            Self::Not => telemetry::CONTENDED,
            Self::AtMost(_) | Self::Forever => telemetry::TIMED_OUT,
        }
    }

    /// Returns the wait that is left after `elapsed`.
    pub(crate) fn less(self, elapsed: Duration) -> Self {
        match self {
            Self::AtMost(timeout) => Self::AtMost(timeout.saturating_sub(elapsed)),
            wait => wait,
        }
    }
}

/// Waits until the lock is granted.
pub(crate) async fn acquire(client: &Arc<Client>, spec: &Spec) -> Result<OwnedLease> {
    match acquire_with(client, spec, Wait::Forever).await? {
        Some(lease) => Ok(lease),
        None => unreachable!("a wait without a limit ends with a grant or an error"),
    }
}

/// Makes one attempt. Returns `None` if the lock is held.
pub(crate) async fn try_acquire(client: &Arc<Client>, spec: &Spec) -> Result<Option<OwnedLease>> {
    acquire_with(client, spec, Wait::Not).await
}

/// Waits for at most `timeout`. Returns `None` if the lock was held until then.
pub(crate) async fn acquire_for(
    client: &Arc<Client>,
    spec: &Spec,
    timeout: Duration,
) -> Result<Option<OwnedLease>> {
    acquire_with(client, spec, Wait::AtMost(timeout)).await
}

/// Waits as `wait` says. Returns `None` if the lock was held until then.
pub(crate) async fn acquire_with(
    client: &Arc<Client>,
    spec: &Spec,
    wait: Wait,
) -> Result<Option<OwnedLease>> {
    // Closing waits until the guard exists or the release of the grant has started.
    let _under_way = client.context.under_way();
    let waiting = AcquireTimer::begin(&client.context);
    let granted = granted(client, spec, wait).await;
    let acquired = granted.and_then(|grant| {
        grant
            .map(|grant| finish(client, spec.renewal, grant))
            .transpose()
    });
    // There is no `.await` after the grant, so it cannot be dropped here.
    waiting.end(&acquired, wait.refusal());
    acquired
}

async fn granted<'a>(
    client: &'a Arc<Client>,
    spec: &Spec,
    wait: Wait,
) -> Result<Option<Grant<'a>>> {
    let key = spec.key.as_ref().map_err(Error::clone)?;
    let traced = TracedOp::of(Span::of(|| {
        tracing::debug_span!(
            target: "leasehold",
            "wait",
            backend = client.context.capabilities.backend,
            key = %key,
            mode = %spec.mode,
            outcome = tracing::field::Empty,
            token = tracing::field::Empty,
        )
    }));
    let granted = with_adapted_ttl(client, spec, key, wait);
    let span = &traced.span;
    let granted = if span.is_disabled() {
        granted.await
    } else {
        span.around(granted).await
    };
    let grant = granted.as_ref().ok().and_then(Option::as_ref);
    if let Some(token) = grant.and_then(|grant| grant.token) {
        span.record("token", token.get());
    }
    let outcome = if grant.is_some() {
        telemetry::GRANTED
    } else {
        wait.refusal()
    };
    traced.end(&granted, outcome);
    granted
}

/// Acquires with the TTL of `spec`. A lazy backend learns at its first use which TTLs its server
/// accepts, so that a default TTL may have to adapt then.
async fn with_adapted_ttl<'a>(
    client: &'a Arc<Client>,
    spec: &Spec,
    key: &LockKey,
    wait: Wait,
) -> Result<Option<Grant<'a>>> {
    let first_use = spec.ttl.is_none() && client.capabilities().provisional;
    let begun = first_use.then(Instant::now);
    match (acquire_within(client, spec, key, wait).await, begun) {
        (Err(error), Some(begun))
            if error.kind() == ErrorKind::InvalidInput && !client.capabilities().provisional =>
        {
            // Boxed, so that the future of a usual acquisition is not larger.
            Box::pin(acquire_within(
                client,
                spec,
                key,
                wait.less(begun.elapsed()),
            ))
            .await
        }
        (granted, _) => granted,
    }
}

async fn acquire_within<'a>(
    client: &'a Arc<Client>,
    spec: &Spec,
    key: &LockKey,
    wait: Wait,
) -> Result<Option<Grant<'a>>> {
    let ttl = client.check(spec)?;
    // A backend in this process may always answer in the first poll. A loop over many locks must
    // still yield to other tasks.
    tokio::task::coop::consume_budget().await;
    let mut request = Request::in_context(key.clone(), spec.mode, ttl, Arc::clone(&spec.context));
    if let Some(proposal) = &spec.proposal {
        request = request.with_proposal(Arc::clone(proposal));
    }
    match wait {
        // A timeout of zero has already passed.
        Wait::Not | Wait::AtMost(Duration::ZERO) => try_once(client, request).await,
        Wait::Forever => wait_for_grant(client, request).await.map(Some),
        Wait::AtMost(timeout) => {
            let signal = Arc::clone(request.signal());
            match tokio::time::timeout(timeout, wait_for_grant(client, request)).await {
                Ok(granted) => granted.map(Some),
                Err(_elapsed) if signal.is_contended() => Ok(None),
                Err(_elapsed) => Err(unanswered(client, key, timeout, signal.fault())),
            }
        }
    }
}

/// Waits in the local queue, then at the backend.
async fn wait_for_grant(client: &Arc<Client>, request: Request) -> Result<Grant<'_>> {
    if let Some(order) = &client.order
        && !request.mode().is_permit()
    {
        order.waits_for(client.context.capabilities.backend, &[request.key()]);
    }
    client.context.room_in_background(None).await;
    let place = enter_queue(client, &request).await?;
    wait_at_backend(client, request, place).await
}

/// Waits at the backend with this place in the local queue.
pub(super) async fn wait_at_backend(
    client: &Arc<Client>,
    request: Request,
    place: Place,
) -> Result<Grant<'_>> {
    let request = request.with_waiting(|waiting| {
        (waiting.keeps_waiting, waiting.yields) = (true, place.yields_to_waiters());
    });
    let acquire = || Arc::clone(&client.context.backend).acquire(request.clone());
    match warn_if_waiting_for_self(
        client,
        &request,
        CompleteOnDrop::acquisition(&client.context, &request, acquire),
    )
    .await
    {
        Ok(lease) => Grant::of(&client.context, request, lease, Some(place)),
        Err(error) => {
            if error.is_retryable() {
                place.failed(&error);
            }
            Err(error)
        }
    }
}

/// Waits for a place at the head of the local queue. If a task waits for itself, a warning is
/// logged after a TTL.
pub(super) async fn enter_queue(client: &Arc<Client>, request: &Request) -> Result<Place> {
    client
        .queues
        .enter(request, || warn_of_self(client, request, request.mode()))
        .await
}

/// Waits at the backend. If a task waits for a lock that it holds itself, a warning is logged after
/// a TTL. The local queue detects this for exclusive holders only.
async fn warn_if_waiting_for_self<T>(
    client: &Client,
    request: &Request,
    waiting: impl Future<Output = T>,
) -> T {
    let (mut waiting, mut timer, mut has_warned) = (pin!(waiting), None, false);
    poll_fn(|cx| {
        if let Poll::Ready(ended) = waiting.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        // An acquisition that is granted without a refusal needs no timer.
        if !has_warned && request.signal().is_contended() {
            let timer = timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(request.ttl().as_duration())));
            if timer.as_mut().poll(cx).is_ready() {
                has_warned = true;
                if let Some(held) = client.schedule.held_by(Asker::current(), request) {
                    warn_of_self(client, request, held);
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// Warns of a task that waits for a lock that it was granted itself in the mode `held`.
fn warn_of_self(client: &Client, request: &Request, held: Mode) {
    let remedy = if held == Mode::Shared && request.mode() == Mode::Exclusive {
        "a read lock cannot be upgraded to a write lock: release it first"
    } else {
        "re-enter through `LockClient::reentrant_owner`"
    };
    contain(|| {
        tracing::warn!(
            target: "leasehold",
            backend = client.context.capabilities.backend,
            key = %request.key(),
            "a task waits for a lock that it acquired itself; if it still has the guard, it waits forever: {remedy}"
        );
    });
}

/// Makes one attempt. If no task is ahead, the attempt has a place in the local queue, so that
/// later waiters of this process queue behind it. Otherwise it is made outside of the queue.
pub(super) async fn try_once(client: &Arc<Client>, request: Request) -> Result<Option<Grant<'_>>> {
    // A single attempt must not wait for long. The limit is enough to slow down a loop of attempts.
    client
        .context
        .room_in_background(Some(LONGEST_TRY_PAUSE))
        .await;
    let mut place = client.queues.try_enter(&request).await?;
    // A reader need not yield, because the backend lets no reader overtake a waiting writer.
    let yielding = place
        .as_ref()
        .map_or(request.mode() != Mode::Shared, Place::yields_to_waiters);
    let request = request.with_waiting(|waiting| waiting.yields = yielding);
    // Only the backend knows whether a release of this process makes a permit available.
    let mut releases = match request.mode() {
        Mode::Permit { .. } => client.queues.releases(request.key(), request.mode()),
        _ => None,
    };
    loop {
        let attempt = || Arc::clone(&client.context.backend).try_acquire(request.clone());
        match CompleteOnDrop::acquisition(&client.context, &request, attempt).await? {
            Attempt::Granted(lease) => {
                return Grant::of(&client.context, request, lease, place).map(Some);
            }
            Attempt::Contended(_) => request.set_contended(),
        }
        // Retries once, after the releases that had begun before the refusal.
        let Some(sent) = releases.take() else { break };
        drop(place.take());
        drop(sent.await);
    }
    Ok(None)
}

/// Turns a grant into a lease that is renewed from now on.
pub(super) fn finish(client: &Client, renewal: Renewal, grant: Grant<'_>) -> Result<OwnedLease> {
    // Nothing between the grant and its owner can panic.
    let lease = OwnedLease::new(HeldLease::begin(grant, &client.schedule, renewal));
    keep(lease.held());
    if let Some(order) = &client.order {
        order.granted(lease.held());
    }
    // The lease is registered first: a client that closes or drains sets its mark before it
    // collects the leases that are held.
    let is_held = lease.held().is_held();
    if let Some(refusal) = client.context.refusal() {
        return Err(refusal);
    }
    if !is_held {
        let request = &lease.held().request;
        let (key, ttl) = (request.key(), request.ttl());
        return Err(Error::new(
            ErrorKind::Lost,
            format!("the grant of `{key}` took longer than its TTL of {ttl}; give a longer TTL"),
        )
        .with_backend(client.context.capabilities.backend));
    }
    Ok(lease)
}

/// Returns the error of a wait that ended after `timeout` without an answer that the lock is held.
pub(crate) fn unanswered(
    client: &Client,
    key: &LockKey,
    timeout: Duration,
    fault: Option<Error>,
) -> Error {
    let why = if fault.is_some() {
        "the backend failed"
    } else {
        "the backend did not answer in this time"
    };
    let error = Error::new(
        ErrorKind::Unavailable,
        format!("`{key}` was not granted within {timeout:?}: {why}"),
    )
    .with_backend(client.context.capabilities.backend);
    match fault {
        Some(fault) => error.with_source(fault),
        None => error,
    }
}

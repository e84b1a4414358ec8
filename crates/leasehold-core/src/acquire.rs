//! One acquisition: the turn at the gate, the backend, the guard.

use std::{sync::Arc, time::Duration};

use tracing::Instrument;

use crate::{
    backend::{Attempt, Lease},
    client::Client,
    driven::Driven,
    error::{Error, ErrorKind, Result},
    gate::Place,
    guard::LockGuard,
    hold::Hold,
    options::{Spec, Wait},
    request::Request,
    telemetry::{Traced, Waiting},
};

/// Acquires as `spec` says, but waits as `wait` says.
pub(crate) async fn acquire(client: &Arc<Client>, spec: &Spec, wait: Wait) -> Result<LockGuard> {
    // Until the guard is there, or what was granted is on its way back.
    let _under_way = client.under_way();
    let waiting = Waiting::begin(client);
    let acquired = granted(client, spec, wait).await.and_then(|grant| finish(client, spec, grant));
    // No `.await` since the grant: it cannot be dropped on the way.
    waiting.end(&acquired);
    acquired
}

async fn granted(client: &Arc<Client>, spec: &Spec, wait: Wait) -> Result<Grant> {
    let key = spec.key.as_ref().map_err(Error::clone)?;
    let traced = Traced::of(tracing::debug_span!(
        target: "leasehold",
        "wait",
        backend = client.capabilities.backend,
        key = %key,
        mode = %spec.mode,
        outcome = tracing::field::Empty,
        token = tracing::field::Empty,
    ));
    let granted = async {
        client.check(spec.mode, spec.ttl)?;
        // A backend in this process may answer in the first poll, always: who loops over many locks must let others run.
        tokio::task::coop::consume_budget().await;
        match wait {
            Wait::No => try_once(client, spec).await,
            Wait::Forever => queue(client, spec).await,
            // The time is over before it begins: one attempt is all there is.
            Wait::AtMost(Duration::ZERO) => match try_once(client, spec).await {
                Err(error) if error.kind() == ErrorKind::Contended => Err(timed_out(client, spec, Duration::ZERO)),
                other => other,
            },
            Wait::AtMost(limit) => match tokio::time::timeout(limit, queue(client, spec)).await {
                Ok(granted) => granted,
                Err(_elapsed) => Err(timed_out(client, spec, limit)),
            },
        }
    };
    let span = &traced.span;
    let granted = if span.is_disabled() { granted.await } else { granted.instrument(span.clone()).await };
    if let Some(token) = granted.as_ref().ok().and_then(|grant| grant.lease.fencing_token()) {
        span.record("token", token.get());
    }
    traced.end(&granted, "granted");
    granted
}

/// What was granted, on its way to a guard.
struct Grant {
    request: Request,
    lease: Arc<dyn Lease>,
    place: Option<Place>,
}

/// Waits its turn at the gate, then at the backend.
async fn queue(client: &Arc<Client>, spec: &Spec) -> Result<Grant> {
    let request = request(spec)?;
    let mut place = enter(client, &request).await?;
    let request = request.with_courtesy(place.is_courteous()).with_last_turn(place.is_last_turn()).with_waiting(true);
    let operation = Arc::clone(&client.backend).acquire(request.clone());
    let lease = Driven::acquisition(client, &request, operation).await?;
    place.granted();
    Ok(Grant { request, lease, place: Some(place) })
}

/// Waits for a place at the gate; a task that waits for itself is told so after a TTL.
async fn enter(client: &Arc<Client>, request: &Request) -> Result<Place> {
    let patience = request.ttl().as_duration();
    let tell = || {
        tracing::warn!(
            target: "leasehold",
            backend = client.capabilities.backend,
            key = %request.key(),
            "a task waits for a lock that it took itself; if it still has the guard it waits for ever: \
             re-enter through `LockClient::owner`"
        );
    };
    client.gates.enter(request.key(), request.mode(), patience, tell).await
}

/// One attempt. In the lane if nobody is ahead, so that later waiters of this process queue behind it; else beside it.
async fn try_once(client: &Arc<Client>, spec: &Spec) -> Result<Grant> {
    let request = request(spec)?;
    let mut place = client.gates.try_enter(request.key(), request.mode()).await?;
    let attempt = Arc::clone(&client.backend).try_acquire(request.clone());
    match Driven::acquisition(client, &request, attempt).await? {
        Attempt::Granted(lease) => {
            if let Some(place) = &mut place {
                place.granted();
            }
            Ok(Grant { request, lease, place })
        }
        Attempt::Contended(_) => Err(Error::new(
            ErrorKind::Contended,
            format!("another holds `{}`; wait for it, or try again later", request.key()),
        )
        .with_backend(client.capabilities.backend)),
    }
}

fn request(spec: &Spec) -> Result<Request> {
    let key = spec.key.as_ref().map_err(Error::clone)?.clone();
    Ok(Request::in_context(key, spec.mode, spec.ttl, Arc::clone(&spec.context)))
}

fn finish(client: &Arc<Client>, spec: &Spec, grant: Grant) -> Result<LockGuard> {
    let Grant { request, lease, place } = grant;
    let hold = Hold::new(client, lease, request, spec.renewal, place);
    let guard = LockGuard::new(hold);
    if client.is_closed() {
        return Err(client.closed());
    }
    if !guard.is_held() {
        return Err(Error::new(
            ErrorKind::Lost,
            format!("the grant of `{}` took longer than its TTL of {}; give a longer TTL", guard.key(), guard.ttl()),
        )
        .with_backend(client.capabilities.backend));
    }
    Ok(guard)
}

fn timed_out(client: &Client, spec: &Spec, limit: Duration) -> Error {
    let key = spec.key.as_ref().map(ToString::to_string).unwrap_or_default();
    Error::new(ErrorKind::TimedOut, format!("`{key}` was not granted within {limit:?}"))
        .with_backend(client.capabilities.backend)
}

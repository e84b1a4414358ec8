//! The steps that cases are built from: clients, requests, and checks of their results.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Clock, Inspection, LockClient, LockKey, Result,
    backend::{Attempt, Lease, LockBackend, Request},
};

use crate::backend_fixture::BackendFixture;

pub(crate) type Backend = Arc<dyn LockBackend>;

/// The time in which a background operation completes: a release, a cancellation, or the
/// registration of a waiter.
pub(crate) const SOON: Duration = Duration::from_millis(100);

/// The longest time to poll for the effect of a background operation.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the value, or panics with the claim that does not hold.
#[track_caller]
pub(crate) fn must<T>(result: Result<T>, claim: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{claim}: {error:?}"),
    }
}

/// Returns the guard of a granted attempt, or panics with the claim that does not hold.
pub(crate) fn must_grant<T>(result: Result<Option<T>>, claim: &str) -> T {
    match must(result, claim) {
        Some(guard) => guard,
        None => panic!("{claim}: the attempt was refused"),
    }
}

pub(crate) fn key(fixture: &dyn BackendFixture, hint: &str) -> LockKey {
    must(
        LockKey::new(fixture.name(hint)),
        "the fixture returns a valid lock name",
    )
}

/// Returns a client with a handle of its own, as in a separate process.
pub(crate) async fn client(fixture: &dyn BackendFixture) -> LockClient {
    client_with(fixture, fixture.clock()).await
}

pub(crate) async fn client_with(fixture: &dyn BackendFixture, clock: Arc<dyn Clock>) -> LockClient {
    LockClient::builder(fixture.open().await)
        .with_ttl(fixture.ttl())
        .with_clock(clock)
        .build()
}

/// Returns the request of a new acquisition, for calls of the backend itself.
pub(crate) fn request(fixture: &dyn BackendFixture, backend: &Backend, key: &LockKey) -> Request {
    let drift = backend.capabilities().drift;
    Request::new(key.clone())
        .with_ttl(fixture.ttl())
        .with_label("testkit")
        .with_clock(fixture.clock(), drift)
}

/// Inspects `key` until the result is as expected or the time-out has passed. Returns the last
/// result.
pub(crate) async fn inspected(
    client: &LockClient,
    key: &LockKey,
    expected: impl Fn(&Inspection) -> bool,
) -> Inspection {
    let mut waited = Duration::ZERO;
    loop {
        let seen = must(client.inspect(key).await, "an inspection is answered");
        if expected(&seen) || waited >= INSPECTION_TIMEOUT {
            return seen;
        }
        tokio::time::sleep(SOON / 10).await;
        waited += SOON / 10;
    }
}

/// Waits until a waiter has queued: until an inspection lists it, or for a fixed time if the
/// backend has no inspection.
pub(crate) async fn queued(client: &LockClient, key: &LockKey) {
    if client.capabilities().inspect {
        drop(inspected(client, key, |seen| !seen.waiters.is_empty()).await);
    } else {
        tokio::time::sleep(SOON).await;
    }
}

#[track_caller]
pub(crate) fn attempt(
    backend: &Backend,
    request: Request,
) -> impl Future<Output = Option<Arc<dyn Lease>>> + Send {
    let attempt = Arc::clone(backend).try_acquire(request);
    async move {
        match must(attempt.await, "an attempt is answered") {
            Attempt::Granted(lease) => Some(lease),
            Attempt::Contended(_) => None,
        }
    }
}

pub(crate) async fn granted(backend: &Backend, request: Request, claim: &str) -> Arc<dyn Lease> {
    let Some(lease) = attempt(backend, request).await else {
        panic!("{claim}: it was refused")
    };
    lease
}

pub(crate) async fn refused(backend: &Backend, request: Request, claim: &str) {
    assert!(
        attempt(backend, request).await.is_none(),
        "{claim}: it was granted"
    );
}

pub(crate) async fn release(lease: &Arc<dyn Lease>) {
    let _outcome = must(Arc::clone(lease).release().await, "a release is answered");
}

/// Repeats an attempt until it is granted. Panics when `within` has passed.
pub(crate) async fn granted_within(
    fixture: &dyn BackendFixture,
    backend: &Backend,
    key: &LockKey,
    within: Duration,
    claim: &str,
) -> Arc<dyn Lease> {
    let until = fixture.clock().now() + within;
    loop {
        if let Some(lease) = attempt(backend, request(fixture, backend, key)).await {
            return lease;
        }
        assert!(
            fixture.clock().now() < until,
            "{claim}: it is still held after {within:?}"
        );
        tokio::time::sleep(within / 100).await;
    }
}

/// Returns the longest time for which a lock without renewals is held.
pub(crate) fn lifetime(fixture: &dyn BackendFixture) -> Duration {
    fixture.ttl().as_duration() + fixture.slack()
}

/// Returns the latest time for an event that is due after `exactly`. In real time it allows for a
/// busy machine.
pub(crate) fn at_the_latest(fixture: &dyn BackendFixture, exactly: Duration) -> Duration {
    if fixture.is_time_paused() {
        exactly
    } else {
        exactly + fixture.ttl().as_duration() * 5
    }
}

/// Waits until a lock without renewals has expired.
pub(crate) async fn let_expire(fixture: &dyn BackendFixture) {
    tokio::time::sleep(lifetime(fixture)).await;
}

/// Polls a future once.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// Polls a future up to `polls` times, each time that its waker is called. Returns its output if it
/// completes.
pub(crate) async fn poll_times<F: Future + Unpin>(
    future: &mut F,
    polls: usize,
) -> Option<F::Output> {
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        left -= 1;
        match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await
}

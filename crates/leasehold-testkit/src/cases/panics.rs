//! Panics of the backend and of a tracing subscriber.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use leasehold_core::{ErrorKind, LockClient, LockKey, Records, Renewal, Result, Revocation};
use tracing::instrument::WithSubscriber;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{client, granted_within, key, lifetime, must, release},
    panicking::{Call, CallPoint, PanicPlan, Panicking},
    panicking_subscriber::PanickingSubscriber,
};

/// The number of tries, of which one has to be in time: a busy machine may be late.
const TRIES: usize = 5;

async fn panicking(fixture: &dyn BackendFixture) -> (LockClient, Arc<PanicPlan>) {
    let plan = Arc::default();
    let backend = Panicking::new(fixture.open().await, &plan);
    let client = LockClient::builder(backend)
        .with_ttl(fixture.ttl())
        .with_clock(fixture.clock())
        .build();
    (client, plan)
}

/// Makes the call that should panic. Drops its guard before it returns.
async fn make(call: Call, client: &LockClient, other: &LockClient, key: &LockKey) -> Result<()> {
    let mutex = client.mutex(key).with_renewal(Renewal::Manual);
    match call {
        Call::Acquire | Call::FencingToken | Call::ValidUntil | Call::KeepAlive => {
            mutex.lock().await.map(drop)
        }
        Call::TryAcquire => mutex.try_lock().await.map(drop),
        Call::Inspect => client.inspect(key).await.map(drop),
        Call::Ping => client.ping().await.map(drop),
        Call::ReadRecord => client.record(key).await.map(drop),
        Call::Revoke => {
            let _guard = must(other.mutex(key).lock().await, "a free lock is granted");
            let seen = must(other.inspect(key).await, "an inspection is answered");
            let Some(holder) = seen.holders.first() else {
                panic!("the holder is not listed")
            };
            client.revoke(holder, Revocation::Immediate).await.map(drop)
        }
        Call::Renew => {
            let guard = must(mutex.lock().await, "a free lock is granted");
            let renewed = guard.renew().await;
            // Not in the background, where it could meet the panic that is armed next.
            must(guard.release().await, "a held lock is released");
            renewed
        }
        Call::WriteRecord => {
            let guard = must(mutex.lock().await, "a free lock is granted");
            let written = guard.write_record("value").await;
            must(guard.release().await, "a held lock is released");
            written.map(drop)
        }
        Call::Release => must(mutex.lock().await, "a free lock is granted")
            .release()
            .await
            .map(drop),
    }
}

/// Checks that a panic in a call of the backend becomes an [`ErrorKind::Indeterminate`] error of
/// that call. Its future is not polled again, and the lock is free long before its TTL has passed.
pub async fn panic_in_any_call_is_an_error_of_that_call(fixture: &dyn BackendFixture) {
    let ((client, plan), others) = (panicking(fixture).await, client(fixture).await);
    let other = fixture.open().await;
    let mut calls = vec![
        (Call::FencingToken, CallPoint::Called, 1),
        (Call::KeepAlive, CallPoint::Called, 1),
        // A lease that does not report its deadline is not valid.
        (Call::ValidUntil, CallPoint::Called, usize::MAX),
    ];
    for point in CallPoint::ALL {
        calls.extend(
            [Call::TryAcquire, Call::Acquire, Call::Renew, Call::Release]
                .map(|call| (call, point, 1)),
        );
        calls.push((Call::Ping, point, 1));
        if client.capabilities().records > Records::None {
            calls.extend([Call::ReadRecord, Call::WriteRecord].map(|call| (call, point, 1)));
        }
        if client.capabilities().inspect {
            calls.push((Call::Inspect, point, 1));
        }
        if client.capabilities().inspect && client.capabilities().revoke {
            calls.push((Call::Revoke, point, 1));
        }
    }
    for (call, point, times) in calls {
        let key = key(fixture, "panic");
        plan.arm(call, point, times);
        let outcome = make(call, &client, &others, &key).await;
        plan.disarm();
        let expected = if call == Call::ValidUntil {
            ErrorKind::Lost
        } else {
            ErrorKind::Indeterminate
        };
        match outcome {
            Ok(()) => {
                panic!("{call:?} panicked when it was {point:?}, and its caller got no error")
            }
            Err(error) => assert_eq!(error.kind(), expected, "{call:?}, {point:?}: {error:?}"),
        }
        let claim = format!("after {call:?} panicked when it was {point:?} the lock is free soon");
        let lease = granted_within(
            fixture,
            &other,
            &key,
            fixture.ttl().as_duration() / 2,
            &claim,
        )
        .await;
        release(&lease).await;
        assert!(
            !plan.polled_again(),
            "{call:?} was polled again after it had panicked"
        );
    }
}

/// Checks that a renewal that panics is retried in time, and that the renewals of other locks
/// continue.
pub async fn panic_in_a_renewal_ends_no_other(fixture: &dyn BackendFixture) {
    let (client, plan) = panicking(fixture).await;
    let mut lost = None;
    // On a busy machine the remaining renewals may be late. Renewals that have ended fail every
    // try.
    for _ in 0..TRIES {
        let one = must(
            client.mutex(key(fixture, "panic_one")).lock().await,
            "a free lock is granted",
        );
        let other = must(
            client.mutex(key(fixture, "panic_other")).lock().await,
            "a free lock is granted",
        );
        plan.arm(Call::Renew, CallPoint::Polled, 2);
        tokio::time::sleep(lifetime(fixture) * 2).await;
        assert_eq!(plan.left(), 0, "both renewals were called");
        lost = [&one, &other]
            .iter()
            .find(|guard| !guard.is_held())
            .map(|guard| guard.loss());
        for guard in [one, other] {
            must(guard.release().await, "a release is answered");
        }
        if lost.is_none() {
            return;
        }
    }
    panic!("two renewals panicked, and a lock was lost: {lost:?}");
}

/// Checks that a tracing subscriber that panics at any one of its calls, or at all of them, leaks
/// no lock.
pub async fn panicking_subscriber_leaks_no_lock(fixture: &dyn BackendFixture) {
    let (client, other) = (client(fixture).await, fixture.open().await);
    let mut point = None;
    loop {
        let keys = ["traced_try", "traced_release", "traced_drop"].map(|hint| key(fixture, hint));
        let (subscriber, calls) = PanickingSubscriber::new(point);
        let traced = async {
            // A panic in the backend's own events becomes an error of the call.
            drop(client.mutex(&keys[0]).try_lock().await);
            if let Ok(guard) = client.mutex(&keys[1]).lock().await {
                drop(guard.release().await);
            }
            drop(client.mutex(&keys[2]).lock().await);
        };
        traced.with_subscriber(subscriber).await;
        for key in &keys {
            let claim =
                format!("after a subscriber panicked at call {point:?} the lock is free soon");
            let lease = granted_within(
                fixture,
                &other,
                key,
                fixture.ttl().as_duration() / 2,
                &claim,
            )
            .await;
            release(&lease).await;
        }
        match point {
            Some(at) if at >= calls.load(SeqCst) => return,
            at => point = Some(at.map_or(0, |at| at + 1)),
        }
    }
}

//! Releases that race renewals, and releases after a loss.

use std::{pin::pin, sync::Arc};

use leasehold_core::{
    ErrorKind, LockKey, Released, Renewal,
    backend::{Attempt, Lease, LockBackend, Request},
};
use leasehold_integration::steps::token;

use crate::{
    fixture::Fixture,
    support::{nothing_left, soon},
};

const ROUNDS: usize = 1_000;

async fn lease(backend: &Arc<dyn LockBackend>, request: &Request) -> Arc<dyn Lease> {
    match Arc::clone(backend)
        .try_acquire(request.as_new_owner())
        .await
        .unwrap()
    {
        Attempt::Granted(lease) => lease,
        Attempt::Contended(contention) => panic!("the lock is still held: {contention:?}"),
    }
}

/// Releases and renews concurrently on two threads, in either order. A rival then acquires the
/// lock, and stale renewals and releases must not affect it.
pub(crate) async fn a_release_that_races_a_renewal_wins(fixture: &mut dyn Fixture) {
    let client = fixture.client().await;
    let backend = Arc::clone(client.backend());
    let request = Request::new(LockKey::new("race").unwrap()).with_ttl(fixture.ttl());
    for round in 0..ROUNDS {
        let ours = lease(&backend, &request).await;
        let (renewing, releasing) = (Arc::clone(&ours), Arc::clone(&ours));
        let released = if round % 2 == 0 {
            let renew = tokio::spawn(renewing.renew());
            let released = releasing.release().await.unwrap();
            // It came before the release or after it.
            drop(renew.await.unwrap());
            released
        } else {
            let release = tokio::spawn(releasing.release());
            drop(renewing.renew().await);
            release.await.unwrap().unwrap()
        };
        assert_eq!(released, Released::Freed, "round {round}");
        // The lock is free whichever came last.
        let rival = lease(&backend, &request).await;
        assert!(rival.fencing_token() > ours.fencing_token());
        let stale = Arc::clone(&ours).renew().await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Lost, "round {round}");
        let stale = ours.release().await.unwrap();
        assert_ne!(stale, Released::StillHeld, "round {round}");
        let renewed = Arc::clone(&rival).renew().await;
        assert!(
            renewed.is_ok(),
            "round {round}: another client freed the rival's lock"
        );
        assert_eq!(
            rival.release().await.unwrap(),
            Released::Freed,
            "round {round}"
        );
    }
    nothing_left(fixture);
}

/// Releases a guard while a renewal that has been sent is still pending.
pub(crate) async fn guard_can_be_released_during_its_renewal(fixture: &mut dyn Fixture) {
    let (client, rival) = (fixture.client().await, fixture.client().await);
    let mut pending = 0;
    for round in 0..ROUNDS {
        let guard = client.mutex("k").lock().await.unwrap();
        let old = token(&guard);
        {
            let mut renewing = pin!(guard.renew());
            pending += usize::from(futures_util::poll!(&mut renewing).is_pending());
        }
        assert_eq!(
            guard.release().await.unwrap(),
            Released::Freed,
            "round {round}"
        );
        let taken = rival.mutex("k").try_lock().await.unwrap();
        let taken = taken.unwrap_or_else(|| panic!("round {round}: still locked"));
        assert!(token(&taken) > old);
        assert_eq!(
            taken.release().await.unwrap(),
            Released::Freed,
            "round {round}"
        );
    }
    assert!(
        pending >= ROUNDS / 3,
        "only {pending} renewals were pending"
    );
    nothing_left(fixture);
}

pub(crate) async fn second_release_reports_loss_and_spares_the_rival(fixture: &mut dyn Fixture) {
    let (client, rival) = (fixture.client().await, fixture.client().await);
    let guard = client
        .mutex("k")
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    let old = token(&guard);
    let mutex = rival.mutex("k");
    let taken = soon("the lock expires", mutex.lock()).await.unwrap();
    assert!(token(&taken) > old);
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
    assert!(client.mutex("k").try_lock().await.unwrap().is_none());
    taken.renew().await.unwrap();
    assert_eq!(taken.release().await.unwrap(), Released::Freed);
    nothing_left(fixture);
}

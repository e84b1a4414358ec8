//! Inspection of holders and waiters, and revocation.

use std::time::Duration;

use leasehold_core::{
    Inspection, LockClient, LossReason, Mode, Revocation, RevokeOutcome, backend::LockBackend,
};
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{backend, ttl};

#[tokio::test(flavor = "multi_thread")]
async fn inspection_lists_all_and_revocation_hits_one_holder() {
    let cluster = EtcdCluster::start().unwrap();
    let one = LockClient::builder(backend(&cluster.url()).await)
        .with_label("one")
        .build();
    let other = LockClient::builder(backend(&cluster.url()).await)
        .with_label("other")
        .build();
    let looking = backend(&cluster.url()).await;
    let inspect = || async { looking.inspect(&"k".try_into().unwrap()).await.unwrap() };
    let guard = one.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(3)).lock().await.unwrap() }
    });
    sleep(Duration::from_millis(200)).await;
    let Inspection {
        holders, waiters, ..
    } = inspect().await;
    assert_eq!((holders.len(), waiters.len()), (1, 1));
    assert_eq!(
        (holders[0].label.as_str(), waiters[0].label.as_str()),
        ("one", "other")
    );
    assert_eq!(
        (holders[0].mode, holders[0].token),
        (Some(Mode::Exclusive), guard.fencing_token())
    );
    assert!(
        holders[0]
            .expires_in
            .is_some_and(|left| left <= Duration::from_secs(3))
    );

    // A graceful revocation: the lock is held to its deadline, and the holder is notified.
    let begun = Instant::now();
    assert!(matches!(
        looking
            .revoke(&holders[0], Revocation::Graceful)
            .await
            .unwrap(),
        RevokeOutcome::FreeWithin(Some(_))
    ));
    assert!(guard.is_held());
    assert_eq!(
        timeout(SOON, guard.lost()).await.unwrap(),
        LossReason::Expired
    );
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        looking
            .revoke(&holders[0], Revocation::Immediate)
            .await
            .unwrap(),
        RevokeOutcome::AlreadyGone
    );
    assert!(next.is_held());

    // An immediate revocation.
    let holders = inspect().await.holders;
    assert_eq!(
        looking
            .revoke(&holders[0], Revocation::Immediate)
            .await
            .unwrap(),
        RevokeOutcome::Freed
    );
    assert_eq!(inspect().await.holders, []);
    assert_eq!(
        timeout(SOON, next.lost()).await.unwrap(),
        LossReason::Replaced
    );
}

//! A member that is cut off from the rest, with the holder on its side.

use std::time::Duration;

use leasehold_core::{ErrorKind, LossReason};
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{client, free, ttl};

/// The member in the minority keeps running and answers its clients, whether it leads or follows.
#[tokio::test(flavor = "multi_thread")]
async fn holder_in_minority_gives_up_before_rival_is_granted() {
    for with_the_leader in [true, false] {
        let mut cluster = EtcdCluster::builder().members(3).linked().start().unwrap();
        let leader = cluster.leader().unwrap();
        let minority = if with_the_leader {
            leader
        } else {
            (leader + 1) % 3
        };
        let majority = (minority + 1) % 3;
        let holder_side = cluster.at(minority).url();
        let one = client(&holder_side).await;
        let other = client(&format!("{}?timeout=500ms", cluster.at(majority).url())).await;
        let guard = one.mutex("k").with_ttl(ttl(2)).lock().await.unwrap();
        let rival = tokio::spawn(async move {
            let guard = other.mutex("k").with_ttl(ttl(8)).lock().await.unwrap();
            (Instant::now(), guard)
        });
        sleep(Duration::from_millis(300)).await;
        assert!(!rival.is_finished());

        cluster.links().unwrap().cut_off(minority);
        assert_eq!(
            timeout(SOON, guard.lost()).await.unwrap(),
            LossReason::Expired
        );
        let lost = Instant::now();
        let (granted, next) = timeout(SOON, rival).await.unwrap().unwrap();
        assert!(
            granted >= lost,
            "the rival was granted {:?} before the loss",
            lost - granted
        );
        assert!(next.fencing_token() > guard.fencing_token());
        // No new lock is granted on that side, and the error is retryable and says why.
        let error = one
            .mutex("other")
            .with_ttl(ttl(2))
            .try_lock()
            .await
            .unwrap_err();
        assert!(error.is_retryable(), "{error:?}");

        cluster.links().unwrap().heal();
        assert!(!guard.is_held());
        assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
        // Once reconnected, that side works as before.
        let begun = Instant::now();
        let again = loop {
            match one.mutex("other").with_ttl(ttl(2)).lock().await {
                Ok(again) => break again,
                Err(error) => assert!(begun.elapsed() < SOON, "{error:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        };
        free(again).await;
        free(next).await;
    }
}

//! Three servers, one of which fails.

use leasehold_integration::{
    server::ZookeeperEnsemble,
    steps::{millis, token},
};
use tokio::time::{sleep, timeout};

use crate::support::{SOON, client, free, lock, ttl, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_and_its_token_outlive_the_leader() {
    let mut ensemble = ZookeeperEnsemble::start().unwrap();
    let url = format!("{}?tick=500ms", ensemble.url());
    let (one, other) = (client(&url).await, client(&url).await);
    let guard = one.mutex("k").with_ttl(ttl(8)).lock().await.unwrap();
    let held = token(&guard);
    let waiter =
        tokio::spawn(async move { other.mutex("k").with_ttl(ttl(8)).lock().await.unwrap() });
    sleep(millis(300)).await;
    let leader = ensemble.leader().unwrap();
    ensemble.member(leader).kill();
    until("another leader", || ensemble.leader().is_ok()).await;
    // Longer than a session: it has been renewed through the remaining servers.
    sleep(millis(10_000)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    assert_eq!(token(&guard), held);
    free(guard).await;
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(token(&next) > held);
    free(next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_member_may_be_dead_or_stopped() {
    let mut ensemble = ZookeeperEnsemble::start().unwrap();
    let url = ensemble.url();
    let mut last = 0;
    for at in 0..3 {
        ensemble.member(at).pause().unwrap();
        until("a leader", || ensemble.leader().is_ok()).await;
        let one = client(&format!("{url}?connect-timeout=1s")).await;
        for _ in 0..5 {
            let guard = lock(&one.mutex("k").with_ttl(ttl(5))).await;
            assert!(token(&guard) > last);
            last = token(&guard);
            free(guard).await;
        }
        ensemble.member(at).resume().unwrap();
        ensemble.member(at).kill();
        let mut freed = 0;
        while freed < 5 {
            // The client's session may be on the server that has just been killed.
            let guard = lock(&one.mutex("k").with_ttl(ttl(5))).await;
            assert!(token(&guard) > last);
            last = token(&guard);
            freed += u32::from(guard.release().await.is_ok());
        }
        ensemble.member(at).restart().unwrap();
    }
}

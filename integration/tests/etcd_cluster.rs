//! The etcd backend on three members.

use std::{sync::Arc, time::Duration};

use leasehold_core::{Clock, ErrorKind, LockBackend, LockClient, LossReason, Released, Request, SystemClock, Ttl};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::EtcdCluster;
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(15);

async fn client(url: &str) -> LockClient {
    LockClient::new(EtcdBackend::connect(url).await.unwrap())
}

fn ttl(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_and_its_token_outlive_the_leader() {
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let guard = one.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(6)).lock().await.unwrap() }
    });
    sleep(Duration::from_millis(300)).await;
    let leader = cluster.leader().unwrap();
    cluster.member(leader).kill();
    // Longer than a TTL: it has been renewed at the others.
    sleep(Duration::from_secs(8)).await;
    assert!(guard.is_held() && !waiter.is_finished());
    let token = guard.fencing_token();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(next.fencing_token() > token);
    assert_eq!(next.release().await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_member_may_be_dead_or_stopped() {
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let url = cluster.url();
    for member in 0..3 {
        cluster.member(member).pause().unwrap();
        let one = client(&format!("{url}?timeout=500ms")).await;
        for _ in 0..10 {
            let guard = timeout(SOON, one.mutex("k").lock()).await.unwrap().unwrap();
            assert_eq!(guard.release().await.unwrap(), Released::Freed);
        }
        cluster.member(member).resume().unwrap();
        cluster.member(member).kill();
        for _ in 0..10 {
            let guard = timeout(SOON, one.mutex("k").lock()).await.unwrap().unwrap();
            assert_eq!(guard.release().await.unwrap(), Released::Freed);
        }
        cluster.member(member).restart().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_with_the_minority_gives_up_before_the_rival_is_granted() {
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let leader = cluster.leader().unwrap();
    // The holder knows the leader only; the others are where the rival is. With the leader stopped its side is the minority.
    let holder_side = cluster.member(leader).url();
    let rival_side = cluster.member((leader + 1) % 3).url();
    let (one, other) = (client(&holder_side).await, client(&format!("{rival_side}?timeout=500ms")).await);
    let guard = one.mutex("k").with_ttl(ttl(2)).lock().await.unwrap();
    let rival = tokio::spawn(async move {
        let guard = other.mutex("k").with_ttl(ttl(6)).lock().await.unwrap();
        (Instant::now(), guard)
    });
    sleep(Duration::from_millis(300)).await;
    cluster.member(leader).pause().unwrap();
    let reason = timeout(SOON, guard.lost()).await.unwrap();
    let lost = Instant::now();
    assert_eq!(reason, LossReason::Expired);
    let (granted, next) = timeout(SOON, rival).await.unwrap().unwrap();
    assert!(granted >= lost, "the rival was granted {:?} before the loss", lost - granted);
    assert!(next.fencing_token() > guard.fencing_token());
    cluster.member(leader).resume().unwrap();
    sleep(Duration::from_millis(500)).await;
    assert!(!guard.is_held() && next.is_held());
}

/// The leader is stopped, a keep-alive is queued in its socket, another leader is elected, the old leader goes on and answers.
/// What is believed after that must end before the key does.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_that_goes_on_extends_nothing() {
    let rounds = std::env::var("LEASEHOLD_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap());
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    for round in 0..rounds {
        let leader = cluster.leader().unwrap();
        let holder = EtcdBackend::connect(&cluster.member(leader).url()).await.unwrap();
        let request = Request::new(format!("k{round}").try_into().unwrap()).with_ttl(ttl(2));
        let lease = Arc::clone(&holder).acquire(request).await.unwrap();
        // The stream stands, so that one keep-alive is one message.
        Arc::clone(&lease).renew().await.unwrap();
        cluster.member(leader).pause().unwrap();
        // Renews until once told that it worked, or that it is over; then no more.
        let renewal = tokio::spawn({
            let lease = Arc::clone(&lease);
            async move {
                loop {
                    match Arc::clone(&lease).renew().await {
                        Ok(()) => return Ok(()),
                        Err(error) if error.kind() == ErrorKind::Lost => return Err(error),
                        Err(_) => sleep(Duration::from_millis(1)).await,
                    }
                }
            }
        });
        // From before an election to the end of the holder's time.
        sleep(Duration::from_millis(200 + 90 * (round % 20))).await;
        cluster.member(leader).resume().unwrap();
        let prefix = format!("k{round}/");
        let watching = Instant::now();
        while !cluster.member((leader + 1) % 3).keys(&prefix).is_ok_and(|keys| keys.is_empty()) {
            assert!(watching.elapsed() < SOON, "round {round}: never freed");
            sleep(Duration::from_millis(5)).await;
        }
        // It was gone before it was seen to be gone.
        let freed = SystemClock.now();
        let outcome = timeout(SOON, renewal).await.unwrap().unwrap();
        let until = lease.valid_until().moment();
        assert!(
            until <= freed,
            "round {round}: believed {:?} longer than the key was there, after {outcome:?}",
            until.since(freed)
        );
        drop(holder.close().await);
    }
}

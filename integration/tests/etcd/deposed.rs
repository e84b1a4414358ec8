//! A leader that was paused and deposed, and continues: it acknowledges keep-alives without effect.

use std::{env, sync::Arc, time::Duration};

use leasehold_core::{
    Clock, ClockDrift, ErrorKind, SystemClock, Timestamp,
    backend::{Lease, LockBackend, Request},
};
use leasehold_etcd::{
    EtcdBackend,
    etcd_client::{Client, PutOptions},
};
use leasehold_integration::{server::EtcdCluster, steps::SOON};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{backend, client, ttl};

/// The environment variable with the maximum number of rounds, such as 50, all of which are then
/// run.
const ROUNDS: &str = "LEASEHOLD_ROUNDS";
const FEW: u64 = 10;
const BRIEFLY: Duration = Duration::from_secs(40);
/// The number of holders in one round, each with its own session and a keep-alive queued at a
/// different time.
const HOLDERS: u64 = 5;

/// Renews until one renewal succeeds or the lease is lost.
async fn renew_once(lease: Arc<dyn Lease>) -> Result<(), leasehold_core::Error> {
    loop {
        match Arc::clone(&lease).renew().await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Lost => return Err(error),
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Acquires a lease and renews it, so that its stream is open and one keep-alive is one message. On
/// a busy machine, or after a member has continued, the renewal may fail at first.
async fn acquired(holder: &Arc<EtcdBackend>, key: &str) -> Arc<dyn Lease> {
    let begun = Instant::now();
    loop {
        let request = Request::new(key.try_into().unwrap()).with_ttl(ttl(2));
        match Arc::clone(holder).acquire(request).await {
            Ok(lease) => {
                if Arc::clone(&lease).renew().await.is_ok() {
                    return lease;
                }
                drop(lease.release().await);
            }
            Err(error) => assert!(begun.elapsed() < SOON, "{error:?}"),
        }
    }
}

/// Returns when these keys were first seen to be deleted on this member.
async fn gone(cluster: &EtcdCluster, member: usize, prefix: &str) -> Timestamp {
    let begun = Instant::now();
    while !cluster
        .at(member)
        .keys(prefix)
        .is_ok_and(|keys| keys.is_empty())
    {
        assert!(begun.elapsed() < SOON, "{prefix} is never freed");
        sleep(Duration::from_millis(5)).await;
    }
    SystemClock.now()
}

/// Pauses the leader for longer than the TTL of many locks, then lets it continue as a deposed one.
/// Asserts that each holder whose key was revoked considers its lock lost.
async fn every_revoked_holder_notices(cluster: &mut EtcdCluster) {
    const TTL_S: u64 = 4;
    let leader = cluster.leader().unwrap();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let addresses: Vec<_> = others
        .iter()
        .map(|at| cluster.at(*at).addr().to_string())
        .collect();
    let url = format!("etcd://{}/", addresses.join(","));
    let mut holders = Vec::new();
    for n in 0..20 {
        let (client, key) = (client(&url).await, format!("k{n:02}"));
        let mutex = client.mutex(key.as_str()).with_ttl(ttl(TTL_S));
        let guard = mutex.lock().await.unwrap();
        holders.push((client, key, guard));
    }
    cluster.member(leader).pause().unwrap();
    sleep(Duration::from_secs(TTL_S + 4)).await;
    cluster.member(leader).resume().unwrap();
    // The deposed leader revokes immediately; each holder renews after a third of its TTL.
    sleep(Duration::from_secs(TTL_S)).await;
    let member = cluster.at(others[0]);
    let has_key = |key: &str| !member.keys(key).unwrap().is_empty();
    let begun = Instant::now();
    while holders
        .iter()
        .any(|(_, key, guard)| guard.is_held() && !has_key(key))
    {
        assert!(begun.elapsed() < SOON, "a revoked lock is considered held");
        sleep(Duration::from_millis(50)).await;
    }
    let held = holders.iter().filter(|(_, _, guard)| guard.is_held());
    println!("{} of {} locks are still held", held.count(), holders.len());
    for (client, _, _guard) in holders {
        client.close().await.unwrap();
    }
}

/// A later release checks that it is still the leader before it revokes, but not if its clock ticks
/// first after the pause; so that some of its rounds revoke as the earlier releases do.
#[tokio::test(flavor = "multi_thread")]
async fn no_holder_misses_what_a_deposed_leader_revokes() {
    let mut cluster = EtcdCluster::builder()
        .members(3)
        .later_release()
        .start()
        .unwrap();
    for _ in 0..2 {
        every_revoked_holder_notices(&mut cluster).await;
    }
}

/// The leader is paused, keep-alives are queued in its socket, another leader is elected, and the
/// old one continues and answers. The holder's deadline must still end before its key is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_deposed_leader_extends_no_deadline() {
    let rounds: Option<u64> = env::var(ROUNDS).ok().map(|rounds| rounds.parse().unwrap());
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let begun = Instant::now();
    for round in 0..rounds.unwrap_or(FEW) {
        if rounds.is_none() && round > 0 && begun.elapsed() > BRIEFLY {
            break;
        }
        let leader = cluster.leader().unwrap();
        let mut holders = Vec::new();
        for n in 0..HOLDERS {
            let holder: Arc<EtcdBackend> = backend(&cluster.at(leader).url()).await;
            let lease = acquired(&holder, &format!("k{round}-{n}")).await;
            holders.push((holder, lease));
        }
        cluster.member(leader).pause().unwrap();
        // From before an election up to the holder's deadline.
        let pause = Duration::from_millis(200 + 90 * (round % 20));
        let renewals: Vec<_> = (0..)
            .zip(&holders)
            .map(|(n, (_, lease))| {
                let lease = Arc::clone(lease);
                tokio::spawn(async move {
                    sleep(pause * n / HOLDERS as u32).await;
                    renew_once(lease).await
                })
            })
            .collect();
        sleep(pause).await;
        cluster.member(leader).resume().unwrap();
        for (n, ((holder, lease), renewal)) in holders.into_iter().zip(renewals).enumerate() {
            let freed = gone(&cluster, (leader + 1) % 3, &format!("k{round}-{n}/")).await;
            let outcome = timeout(SOON, renewal).await.unwrap().unwrap();
            let until = lease.valid_until().moment();
            assert!(
                until <= freed,
                "round {round}: considered held {:?} after the key was deleted, with {outcome:?}",
                until.since(freed)
            );
            drop(holder.close().await);
        }
    }
}

/// A control: under the same fault, with the old leader isolated from the new one, a client that
/// trusts a keep-alive's answer considers its lock held for seconds after the key is gone. This
/// library does not.
#[tokio::test(flavor = "multi_thread")]
async fn trusting_a_keep_alive_alone_outlives_the_key() {
    const TTL_S: i64 = 6;
    // The old leader answers only until it notices that it has no majority, which a busy machine
    // may miss.
    for _ in 0..5 {
        let mut cluster = EtcdCluster::builder().members(3).linked().start().unwrap();
        let leader = cluster.leader().unwrap();
        let rival_side = (leader + 1) % 3;
        let addr = cluster.at(leader).addr().to_string();
        let naive = Client::connect([addr], None).await.unwrap();
        let lease = naive.lease_client().grant(TTL_S, None).await.unwrap().id();
        naive
            .kv_client()
            .put("naive/k", "", Some(PutOptions::new().with_lease(lease)))
            .await
            .unwrap();
        let (mut keeper, mut answers) = naive.lease_client().keep_alive(lease).await.unwrap();
        keeper.keep_alive().await.unwrap();
        answers.message().await.unwrap();
        let ours = backend(&cluster.at(leader).url()).await;
        let request = Request::new("ours".try_into().unwrap()).with_ttl(ttl(TTL_S as u64));
        let held = Arc::clone(&ours).acquire(request).await.unwrap();
        Arc::clone(&held).renew().await.unwrap();

        cluster.links().unwrap().cut_off(leader);
        cluster.member(leader).pause().unwrap();
        sleep(Duration::from_millis(4_500)).await;
        let sent = SystemClock.now();
        keeper.keep_alive().await.unwrap();
        let renewal = tokio::spawn(renew_once(Arc::clone(&held)));
        sleep(Duration::from_millis(100)).await;
        cluster.member(leader).resume().unwrap();
        let answered = timeout(Duration::from_secs(1), answers.message()).await;
        let freed = gone(&cluster, rival_side, "naive/").await;
        let ours_freed = gone(&cluster, rival_side, "ours/").await;
        let outcome = timeout(SOON, renewal).await.unwrap().unwrap();
        let until = held.valid_until().moment();
        assert!(
            until <= ours_freed,
            "considered held {:?} too long, with {outcome:?}",
            until.since(ours_freed)
        );
        if matches!(&answered, Ok(Ok(Some(answer))) if answer.ttl() > 0) {
            // The other members may have elected a leader late, and then kept the key for longer.
            if ClockDrift::DEFAULT
                .deadline(sent, ttl(TTL_S as u64))
                .moment()
                > freed
            {
                return;
            }
        }
    }
    panic!(
        "no acknowledgement by a deposed leader outlived the key in five rounds: the control is void"
    );
}

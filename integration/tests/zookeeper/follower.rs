//! The holder's server loses its leader without noticing.
//!
//! It keeps answering pings and reads, while the sessions of its clients expire at the remaining
//! servers without any notice. Every holder must therefore give up by its own clock before a rival
//! on another server is granted. The test uses two processes, whose timestamps come from a clock
//! that all processes of a host share.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use leasehold_core::{LockClient, LockGuard};
use leasehold_integration::{
    peer::{Peer, listen, role, tell},
    server::{ZookeeperEnsemble, ZookeeperServer},
    steps::millis,
    worker::now_ns,
};

use crate::support::{client, lock, members, ttl, until};

const SESSIONS: usize = 50;
const TTL_SECS: u64 = 3;

/// Longer than the pause of the leader.
const LONG_TTL_SECS: u64 = 8;

/// The interval at which the holder checks all of its guards.
const POLL_INTERVAL: Duration = Duration::from_micros(500);

/// The timeout after the fault and the TTL: a session ends at a tick, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn holders_of_a_stopped_server_give_up_before_a_rival() {
    const NAME: &str = "follower::holders_of_a_stopped_server_give_up_before_a_rival";
    if let Some(role) = role() {
        return play(&role).await;
    }
    overtaken(
        NAME,
        TTL_SECS,
        |ensemble, at| ensemble.member(at).pause().unwrap(),
        |ensemble, at| ensemble.member(at).resume().unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_of_a_cut_off_server_give_up_before_a_rival() {
    const NAME: &str = "follower::holders_of_a_cut_off_server_give_up_before_a_rival";
    if let Some(role) = role() {
        return play(&role).await;
    }
    overtaken(
        NAME,
        TTL_SECS,
        |ensemble, at| ensemble.isolate(at).unwrap(),
        |ensemble, at| ensemble.rejoin(at).unwrap(),
    )
    .await;
}

/// The paused leader executes the holders' queued requests when it continues. It has not received
/// the keep-alives that their server has seen since the pause.
#[tokio::test(flavor = "multi_thread")]
async fn holders_whose_leader_stood_still_give_up_before_a_rival() {
    const NAME: &str = "follower::holders_whose_leader_stood_still_give_up_before_a_rival";
    if let Some(role) = role() {
        return play(&role).await;
    }
    overtaken(
        NAME,
        LONG_TTL_SECS,
        |ensemble, at| {
            let leader = ensemble.leader().unwrap();
            ensemble.member(leader).pause().unwrap();
            std::thread::sleep(millis(rand::random_range(1_500..2_500)));
            ensemble.mute(at, leader).unwrap();
            ensemble.member(leader).resume().unwrap();
        },
        |ensemble, at| ensemble.rejoin(at).unwrap(),
    )
    .await;
}

async fn overtaken(
    test: &str,
    secs: u64,
    fault: impl Fn(&mut ZookeeperEnsemble, usize),
    heal: impl Fn(&mut ZookeeperEnsemble, usize),
) {
    let rounds = std::env::var("LEASEHOLD_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    // A follower with a high sync limit is the worst server for a holder.
    let mut ensemble = ZookeeperServer::builder()
        .sync_limit(60)
        .links()
        .start_members(3)
        .unwrap();
    let mut margins = Vec::new();
    for round in 0..rounds {
        let (leader, follower) = (ensemble.leader().unwrap(), ensemble.followers()[0]);
        let near = format!("{}?tick=500ms", ensemble.member(follower).url());
        let far = format!("{}?tick=500ms", ensemble.member(leader).url());
        let mut holder = Peer::this_test(test, &format!("hold {near} {round} {secs}")).unwrap();
        heard(&mut holder, "held").await;
        let held = members(ensemble.member(leader));
        let mut rival = Peer::this_test(test, &format!("wait {far} {round} {secs}")).unwrap();
        until("all rivals wait", || {
            members(ensemble.member(leader)).difference(&held).count() == SESSIONS
        })
        .await;
        // At a random phase of the leader's pings; the phases of the sessions differ too.
        tokio::time::sleep(millis(rand::random_range(0..1000))).await;
        tokio::task::block_in_place(|| fault(&mut ensemble, follower));
        let (ended, granted) = (stamps(&mut holder).await, stamps(&mut rival).await);
        assert_eq!((ended.len(), granted.len()), (SESSIONS, SESSIONS));
        for (n, granted) in granted {
            let ended = ended[&n];
            assert!(
                ended <= granted,
                "round {round}: holder {n} considered its lock held for {} µs after its rival was granted",
                (ended - granted) / 1000
            );
            margins.push((granted - ended) / 1_000_000);
        }
        drop((holder, rival));
        heal(&mut ensemble, follower);
        ensemble.wait_until_serving().unwrap();
    }
    margins.sort_unstable();
    let (least, median) = (margins[0], margins[margins.len() / 2]);
    println!(
        "{} holders gave up {least} ms or more before their rivals were granted, half of them {median} ms",
        margins.len()
    );
}

async fn heard(peer: &mut Peer, expected: &str) -> String {
    let line = tokio::task::block_in_place(|| peer.hear(PATIENCE)).unwrap();
    line.strip_prefix(expected)
        .unwrap_or_else(|| panic!("{line:?} instead of {expected:?}"))
        .to_owned()
}

async fn stamps(peer: &mut Peer) -> BTreeMap<usize, u64> {
    serde_json::from_str(&heard(peer, "stamps ").await).unwrap()
}

/// Runs a peer.
async fn play(role: &str) {
    let [part, url, round, secs] = *role.split(' ').collect::<Vec<_>>() else {
        panic!("no such role: {role}")
    };
    let stamps = match part {
        "hold" => {
            let held =
                join_all((0..SESSIONS).map(|n| hold(url, round, secs.parse().unwrap(), n))).await;
            tell("held");
            tokio::task::spawn_blocking(move || watch(&held))
                .await
                .unwrap()
        }
        _ => wait(url, round).await,
    };
    tell(format_args!(
        "stamps {}",
        serde_json::to_string(&stamps).unwrap()
    ));
    // The guards are held until the process is killed.
    tokio::task::block_in_place(|| while listen().is_some() {});
}

/// Opens a session and acquires a lock at a random time.
async fn hold(url: &str, round: &str, secs: u64, n: usize) -> (LockClient, LockGuard) {
    tokio::time::sleep(millis(rand::random_range(0..1000 * secs))).await;
    let client = client(url).await;
    let guard = lock(&client.mutex(format!("{round}-{n}")).with_ttl(ttl(secs))).await;
    (client, guard)
}

/// Returns the end of each hold, observed on a thread that no runtime delays.
fn watch(held: &[(LockClient, LockGuard)]) -> BTreeMap<usize, u64> {
    let mut ended = BTreeMap::new();
    while ended.len() < held.len() {
        for (n, (_, guard)) in held.iter().enumerate() {
            if !ended.contains_key(&n) && !guard.is_held() {
                // A guard is not held after its deadline, even if it was not checked in between.
                ended.insert(n, now_ns().min(guard.deadline().moment().as_nanos()));
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    ended
}

/// Returns the time of each grant.
async fn wait(url: &str, round: &str) -> BTreeMap<usize, u64> {
    let client = client(url).await;
    let granted = (0..SESSIONS).map(|n| {
        // A session that outlives the test.
        let mutex = client.mutex(format!("{round}-{n}")).with_ttl(ttl(20));
        async move {
            let guard = lock(&mutex).await;
            let granted = now_ns();
            // Not released, to exclude other events.
            drop(tokio::spawn(async move { guard.lost().await }));
            (n, granted)
        }
    });
    join_all(granted.map(tokio::spawn))
        .await
        .into_iter()
        .map(|granted| granted.unwrap())
        .collect()
}

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use leasehold_integration::{proxy::Direction, server::Persistence};
use tokio::task::{JoinSet, block_in_place};

use crate::support::{
    PATIENT, client_at, five, nothing_left, token, until, url_through, value, ways,
};

/// Which servers each contender reaches first.
const SHARES: [&[usize]; 3] = [&[0, 1], &[2, 3], &[4]];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split_vote_2_2_1_grants_at_most_one_and_converges() {
    let servers = five(Persistence::None).await;
    let mut contenders = Vec::new();
    for share in SHARES {
        let ways = ways(&servers);
        let client = client_at(&url_through(&ways, PATIENT)).await;
        for (at, way) in ways.iter().enumerate() {
            if !share.contains(&at) {
                way.hold(Direction::ClientToServer);
            }
        }
        contenders.push((ways, client));
    }
    let (inside, tokens) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let mut tasks = JoinSet::new();
    for (_, client) in &contenders {
        let (mutex, inside, tokens) = (client.mutex("k"), Arc::clone(&inside), Arc::clone(&tokens));
        tasks.spawn(async move {
            let guard = mutex.lock().await.unwrap();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold");
            // While it holds: whoever comes next may be done before it has heard that its release
            // was.
            tokens.lock().unwrap().push(token(&guard));
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            guard.release().await.unwrap();
        });
    }
    block_in_place(|| {
        until("the vote is split", || {
            servers
                .servers
                .iter()
                .all(|server| value(server, "k").is_some())
        });
    });
    for (ways, _) in &contenders {
        ways.iter()
            .for_each(leasehold_integration::proxy::Proxy::heal);
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let tokens = tokens.lock().unwrap().clone();
    assert_eq!(tokens.len(), SHARES.len());
    assert!(
        tokens.is_sorted_by(|a, b| a < b),
        "in the order of the grants: {tokens:?}"
    );
    block_in_place(|| nothing_left(&servers.servers));
}

/// Nobody waits for ever, and no token comes twice, when all ask all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contenders_that_never_pause_all_get_their_turns() {
    const TURNS: usize = 15;
    let servers = five(Persistence::None).await;
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let client = crate::support::client(&servers, PATIENT).await;
        for _ in 0..4 {
            let mutex = client.mutex("k");
            tasks.spawn(async move {
                let mut tokens = Vec::new();
                for _ in 0..TURNS {
                    let guard = mutex.lock().await.unwrap();
                    tokens.push(token(&guard));
                    guard.release().await.unwrap();
                }
                tokens
            });
        }
    }
    let mut all = Vec::new();
    while let Some(tokens) = tasks.join_next().await {
        all.extend(tokens.unwrap());
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 16 * TURNS);
    block_in_place(|| nothing_left(&servers.servers));
}

//! Servers and connections that fail at any step of a token's write-back.

use std::time::Duration;

use leasehold_core::{LockClient, Released, quorum::Provision};
use leasehold_integration::{
    proxy::Direction,
    server::{Persistence, RedisServer, RedlockServers},
};
use tokio::task::block_in_place;

use crate::support::{
    PATIENT, eventually, nothing_left, token, ttl, until, url_through, value, ways,
};

/// The number of chunks: acquisition, write-back, and renewal or release; and one more.
const STEPS: u64 = 4;

/// The time after which a restarted server votes again.
const GRACE: Duration = Duration::from_secs(1);

/// Tokens are unique and increase, whichever servers fail at whichever step. Gaps are allowed.
async fn kills_at_each_step(victims: &'static [usize]) {
    let mut servers = RedlockServers::start(5, Persistence::EveryWrite).unwrap();
    let provision = Provision::new(ttl(GRACE))
        .with_never_used(true)
        .with_durable(true);
    leasehold::quorum::connect(&servers.url())
        .await
        .unwrap()
        .provision(&provision)
        .await
        .unwrap();
    let ways = ways(&servers);
    let backend = leasehold::backend::connect(&url_through(&ways, PATIENT))
        .await
        .unwrap();
    let client = LockClient::builder(backend).with_ttl(ttl(GRACE)).build();
    let mut last = token(&eventually(&client, "k").await);
    let (mut granted, mut failed) = (0, 0);
    for direction in [Direction::ClientToServer, Direction::ServerToClient] {
        for step in 0..STEPS {
            block_in_place(|| {
                // The grant must be written back to all servers.
                until("all vote", || servers.servers.iter().all(votes));
                disagree(&servers, last + 1_000_000_000);
            });
            for victim in victims {
                ways[*victim].cut_after_chunks(direction, step);
            }
            let outcome = client.mutex("k").try_lock().await;
            // Where the connection has ended, the server is killed too.
            block_in_place(|| {
                for victim in victims {
                    servers.servers[*victim].kill();
                    servers.servers[*victim].restart().unwrap();
                    ways[*victim].heal();
                }
            });
            let guard = match outcome {
                Ok(Some(guard)) => {
                    granted += 1;
                    guard
                }
                refused => {
                    assert!(
                        refused
                            .as_ref()
                            .err()
                            .is_none_or(leasehold_core::Error::is_retryable),
                        "{refused:?}"
                    );
                    failed += 1;
                    eventually(&client, "k").await
                }
            };
            assert!(token(&guard) > last, "{} after {last}", token(&guard));
            last = token(&guard);
            drop(guard.release().await);
        }
    }
    // An attempt whose connections end is repeated on new ones, so even three lost connections may
    // not fail it.
    let trips: u64 = victims
        .iter()
        .map(|victim| ways[*victim].counters().trips)
        .sum();
    println!("{granted} granted, {failed} failed, {trips} connections cut");
    assert!(
        granted > 0 && trips >= STEPS,
        "{trips} cuts: the steps do not reach the write-back"
    );
    block_in_place(|| nothing_left(&servers.servers));
}

/// Returns whether the server is in the run that its marker names.
fn votes(server: &RedisServer) -> bool {
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query(&mut server.connection().unwrap())
        .unwrap();
    let run = info
        .lines()
        .find_map(|line| line.strip_prefix("run_id:"))
        .expect("the server has no run id")
        .trim();
    value(server, ":lh4:mark").is_some_and(|mark| mark.contains(run))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_each_step_of_the_write_back_repeats_no_token() {
    let victims: [&'static [usize]; 4] = [&[0], &[4], &[1, 2], &[0, 3, 4]];
    futures_util::future::join_all(
        victims.map(|victims| tokio::spawn(kills_at_each_step(victims))),
    )
    .await
    .into_iter()
    .for_each(Result::unwrap);
}

/// Gives each server a different token for the lock, so that the next grant has to be written back.
fn disagree(servers: &RedlockServers, above: u64) {
    for (at, server) in servers.servers.iter().enumerate() {
        let owner = "0".repeat(32);
        let fence = format!("{}:{owner}", above + at as u64 * 7);
        let () = redis::cmd("SET")
            .arg("{k}:lh2:fence")
            .arg(fence)
            .query(&mut server.connection().unwrap())
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_stands_at_the_token_that_was_granted() {
    let servers = crate::support::five(Persistence::None).await;
    let client = crate::support::client(&servers, PATIENT).await;
    let mut last = 0;
    for round in 0..10 {
        if round % 2 == 0 {
            disagree(&servers, 1 << 51 | round << 20);
        }
        let guard = client.mutex("k").lock().await.unwrap();
        assert!(token(&guard) > last);
        last = token(&guard);
        let stands = |server| {
            value(server, "{k}:lh2:fence")
                .is_some_and(|fence| fence.starts_with(&format!("{last}:")))
        };
        let standing = servers
            .servers
            .iter()
            .filter(|server| stands(*server))
            .count();
        assert!(standing >= 3, "{standing} stand at {last}");
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

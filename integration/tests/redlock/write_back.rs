//! A server or a connection that ends at any step of the write-back of a token.

use leasehold_core::{Released, quorum::Provision};
use leasehold_integration::{
    proxy::Direction,
    server::{Persistence, RedlockServers},
};
use tokio::task::block_in_place;

use crate::support::{PATIENT, client_at, eventually, nothing_left, token, ttl, url_through, value, ways};

/// What comes in one piece: acquire, write-back, renewal or release; and one more.
const STEPS: u64 = 4;

/// Tokens are unique and grow, whichever servers end at whichever step; gaps are allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_each_step_of_the_write_back_repeats_no_token() {
    let mut servers = RedlockServers::start(5, Persistence::EveryWrite).unwrap();
    let provision = Provision::new(ttl(crate::support::TTL)).with_never_used(true).with_durable(true);
    leasehold::redlock(&servers.url()).await.unwrap().provision(&provision).await.unwrap();
    let ways = ways(&servers);
    let client = client_at(&url_through(&ways, PATIENT)).await;
    let mut last = token(&eventually(&client, "k").await);
    let (mut granted, mut failed) = (0, 0);
    for direction in [Direction::ClientToServer, Direction::ServerToClient] {
        for step in 0..STEPS {
            for victims in [&[0][..], &[4], &[1, 2], &[0, 3, 4]] {
                block_in_place(|| disagree(&servers, last + 1_000_000_000));
                for victim in victims {
                    ways[*victim].cut_after_chunks(direction, step);
                }
                let outcome = client.mutex("k").try_lock().await;
                // The server itself ends too, where the connection has.
                block_in_place(|| {
                    for victim in victims {
                        servers.servers[*victim].kill();
                        servers.servers[*victim].restart().unwrap();
                        ways[*victim].heal();
                    }
                });
                let guard = match outcome {
                    Ok(guard) => {
                        granted += 1;
                        guard
                    }
                    Err(error) => {
                        assert!(error.is_retryable(), "{error:?}");
                        failed += 1;
                        eventually(&client, "k").await
                    }
                };
                assert!(token(&guard) > last, "{} after {last}", token(&guard));
                last = token(&guard);
                drop(guard.release().await);
            }
        }
    }
    assert!(granted > 0 && failed > 0, "{granted} granted, {failed} failed: the steps do not reach what they are for");
    block_in_place(|| nothing_left(&servers.servers));
}

/// Gives each server another token for the lock, so that the next grant has to be written back.
fn disagree(servers: &RedlockServers, above: u64) {
    for (at, server) in servers.servers.iter().enumerate() {
        let owner = "0".repeat(32);
        let fence = format!("{}:{owner}", above + at as u64 * 7);
        let () = redis::cmd("SET").arg("{k}:lh2:fence").arg(fence).query(&mut server.connection().unwrap()).unwrap();
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
        let stands =
            |server| value(server, "{k}:lh2:fence").is_some_and(|fence| fence.starts_with(&format!("{last}:")));
        let standing = servers.servers.iter().filter(|server| stands(*server)).count();
        assert!(standing >= 3, "{standing} stand at {last}");
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

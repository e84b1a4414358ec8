use std::time::{Duration, Instant};

use leasehold_core::{LockGuard, LossReason, Released};
use leasehold_integration::{
    leftovers,
    panics::nothing_panicked,
    server::{Persistence, RedisServer},
    steps::{SOON, client_of, is_a_fault, millis, token, until},
};

use tokio::task::block_in_place;

use crate::support::nothing_left;

const TTL: u64 = 2000;

/// A waiter retries after a fault for one TTL, and the last attempt may take its timeouts.
const FAULT_LIMIT: Duration = Duration::from_millis(TTL + 10_000);

/// A registration expires after 5 s, and a lock after its TTL.
const REGISTRATION: Duration = Duration::from_millis(TTL + 10_000);

/// Waits until a waiter is registered.
fn somebody_waits(server: &RedisServer) {
    until("a waiter is registered", millis(5000), || {
        leftovers::redis(server)
            .unwrap()
            .iter()
            .any(|entry| entry.contains(":writers "))
    });
}

/// Injects a fault while a lock is held and waited for. Every outcome is a typed fault or a correct
/// grant in time, tokens increase, later operations succeed, and nothing is left over. Returns
/// whether the holder still held the lock when the waiter was granted it.
async fn strike(
    persistence: Persistence,
    how: impl FnOnce(&mut RedisServer) + Send + 'static,
) -> bool {
    // Spawned, because the control of one server blocks and must not delay the control of another.
    tokio::spawn(struck(persistence, how)).await.unwrap()
}

async fn struck(persistence: Persistence, how: impl FnOnce(&mut RedisServer)) -> bool {
    let mut server = RedisServer::builder()
        .persistence(persistence)
        .start()
        .unwrap();
    let (holder, waiter) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let guard = holder.mutex("k").lock().await.unwrap();
    let old = token(&guard);
    let mutex = waiter.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock_timeout(millis(3 * TTL)).await });
    block_in_place(|| somebody_waits(&server));

    let struck = Instant::now();
    block_in_place(|| how(&mut server));
    let ended = tokio::time::timeout(millis(3 * TTL) + FAULT_LIMIT, waiting).await;
    let outcome = ended
        .expect("the waiter hangs")
        .expect("the waiter panicked");
    let mut two_holders = false;
    let mut largest = old;
    match outcome {
        Ok(Some(granted)) => {
            two_holders = guard.is_held();
            largest = token(&granted);
            assert!(
                largest > old,
                "{persistence:?}: token {largest} after {old}"
            );
            granted.release().await.unwrap();
        }
        Ok(None) => {}
        Err(error) => assert!(
            is_a_fault(error.kind()),
            "{persistence:?}: after {:?}: {error:?}",
            struck.elapsed()
        ),
    }
    // The release is answered or refused in time, whatever happened to the lease.
    let released = tokio::time::timeout(FAULT_LIMIT, guard.release())
        .await
        .expect("the release hangs");
    assert!(
        released
            .as_ref()
            .map_or_else(|error| is_a_fault(error.kind()), |_| true),
        "{released:?}"
    );

    for client in [&holder, &waiter] {
        let again = client.mutex("k").lock_timeout(SOON).await;
        let again: Option<LockGuard> =
            again.unwrap_or_else(|error| panic!("{persistence:?}: no recovery: {error:?}"));
        let again = again.unwrap_or_else(|| panic!("{persistence:?}: still locked"));
        assert!(
            token(&again) > largest,
            "{persistence:?}: token {} after {largest}",
            token(&again)
        );
        largest = token(&again);
        again.release().await.unwrap();
    }
    block_in_place(|| nothing_left(&server, REGISTRATION));
    nothing_panicked();
    two_holders
}

fn kill_and_restart(server: &mut RedisServer) {
    server.kill();
    server.restart().unwrap();
}

fn stop_and_restart(server: &mut RedisServer) {
    server.restart().unwrap();
}

fn down_for_a_ttl(server: &mut RedisServer) {
    server.kill();
    std::thread::sleep(millis(TTL));
    server.restart().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_persistence_is_survived() {
    // As the capabilities say, a lock whose record is lost is free immediately. Two holders are
    // possible, and their tokens differ.
    let (_, _, _) = tokio::join!(
        strike(Persistence::None, kill_and_restart),
        strike(Persistence::None, stop_and_restart),
        strike(Persistence::None, down_for_a_ttl),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_snapshots_is_survived() {
    let saved_then_killed = |server: &mut RedisServer| {
        redis::cmd("SAVE")
            .exec(&mut server.connection().unwrap())
            .unwrap();
        kill_and_restart(server);
    };
    let (_, stopped, saved) = tokio::join!(
        strike(Persistence::Snapshot, kill_and_restart),
        strike(Persistence::Snapshot, stop_and_restart),
        strike(Persistence::Snapshot, saved_then_killed),
    );
    assert!(
        !stopped,
        "a lock that was saved at the stop had two holders"
    );
    assert!(!saved, "a lock that was saved had two holders");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_keeps_every_write_admits_no_second_holder() {
    let (killed, stopped, down) = tokio::join!(
        strike(Persistence::EveryWrite, kill_and_restart),
        strike(Persistence::EveryWrite, stop_and_restart),
        strike(Persistence::EveryWrite, down_for_a_ttl),
    );
    assert_eq!(
        (killed, stopped, down),
        (false, false, false),
        "two holders"
    );
}

fn flush(server: &mut RedisServer) {
    redis::cmd("FLUSHALL")
        .exec(&mut server.connection().unwrap())
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_server_grants_and_old_holder_learns_at_renewal() {
    strike(Persistence::None, flush).await;
    let mut server = RedisServer::start().unwrap();
    // A busy machine renews long before the deadline.
    let client = client_of(&server.url(), 15_000).await;
    let guard = client.mutex("k").lock().await.unwrap();
    flush(&mut server);
    let reason = tokio::time::timeout(SOON, guard.lost())
        .await
        .expect("no error although the data is lost");
    assert_eq!(reason, LossReason::Replaced);
    assert!(!guard.is_held());
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
}

/// Repeats ten grants and a fault that loses them. Every token must be larger than all earlier
/// ones.
async fn tokens_grow(
    persistence: Persistence,
    lose: impl Fn(&mut RedisServer) + Send + Sync + 'static,
) {
    tokio::spawn(grown(persistence, lose)).await.unwrap();
}

async fn grown(persistence: Persistence, lose: impl Fn(&mut RedisServer)) {
    let mut server = RedisServer::builder()
        .persistence(persistence)
        .start()
        .unwrap();
    let client = client_of(&server.url(), TTL).await;
    let mut last = 0;
    for round in 0..3 {
        for grant in 0..10 {
            let guard = client.mutex("k").lock_timeout(SOON).await.unwrap().unwrap();
            assert!(
                token(&guard) > last,
                "round {round}, grant {grant}: {} after {last}",
                token(&guard)
            );
            last = token(&guard);
            guard.release().await.unwrap();
            if grant == 4 {
                // Later writes are lost.
                let _saved: redis::RedisResult<()> =
                    redis::cmd("SAVE").query(&mut server.connection().unwrap());
            }
        }
        block_in_place(|| lose(&mut server));
    }
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_never_repeat_or_decrease_when_the_server_loses_data() {
    tokio::join!(
        tokens_grow(Persistence::None, kill_and_restart),
        tokens_grow(Persistence::Snapshot, kill_and_restart),
        tokens_grow(Persistence::EveryWrite, kill_and_restart),
        tokens_grow(Persistence::EveryWrite, |server| {
            // The cut is in the middle of the last record.
            server.cut_log_tail(40).unwrap();
            server.restart().unwrap();
        }),
        tokens_grow(Persistence::None, flush),
    );
}

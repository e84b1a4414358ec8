//! The keys of scripts.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use leasehold_core::{
    FencingToken, Mode, Revocation,
    backend::{LockBackend, RecordRead, RecordWrite},
    quorum::{EpochRecord, QuorumNode, TokenVote},
};
use leasehold_redis::{RedisBackend, redis};

use crate::support::{Server, TERMS, granted_to, key, refused_to, request, ttl, until};

/// A script that touches other keys fails on servers that forbid it, and while its slot moves to
/// another node of a cluster.
#[tokio::test]
async fn scripts_touch_only_the_keys_that_they_declare() {
    let server = Server::monitored();
    let backends = [server.backend().await, server.backend().await];
    for node in [false, true] {
        for mode in [
            Mode::Exclusive,
            Mode::Shared,
            Mode::Permit {
                of: NonZeroU32::MIN,
            },
        ] {
            hold_and_wait(&backends, mode, node).await;
        }
    }
    draw_a_token_after_its_counter_is_lost(&server, &backends[0]).await;
    vote(&backends[0]).await;
    write_and_read_a_record(&backends[0]).await;

    until("every script ran", || async {
        let scripts = server.scripts();
        assert!(!scripts.loaded.is_empty());
        scripts.ran.len() == scripts.loaded.len()
    })
    .await;
}

/// Runs through the branches of the scripts of this mode. `node` means those of a quorum's node.
async fn hold_and_wait([one, other]: &[Arc<RedisBackend>; 2], mode: Mode, node: bool) {
    let name = format!("{mode:?} {node}");
    let asked = || request(&name).with_mode(mode).with_ttl(ttl(10_000));
    granted_to(one, asked(), node)
        .await
        .release()
        .await
        .unwrap();

    let yielding = asked().with_waiting(|waiting| waiting.yields = true);
    let held = granted_to(one, yielding, node).await;
    let writer = request(&name)
        .with_ttl(ttl(10_000))
        .with_waiting(|waiting| waiting.keeps_waiting = true);
    let waiter = asked().with_waiting(|waiting| waiting.keeps_waiting = true);
    if mode == Mode::Shared {
        granted_to(other, asked(), node)
            .await
            .release()
            .await
            .unwrap();
        refused_to(other, writer.clone(), node).await;
    }
    for _ in 0..2 {
        refused_to(other, waiter.clone(), node).await;
    }
    held.clone().renew().await.unwrap();
    one.inspect(&key(&name)).await.unwrap();
    held.release().await.unwrap();

    // The first refusal offers the free lock, once the waiter has been idle for a while.
    tokio::time::sleep(Duration::from_millis(150)).await;
    for _ in 0..2 {
        refused_to(
            one,
            asked().with_waiting(|waiting| waiting.yields = true),
            node,
        )
        .await;
    }
    let first = if mode == Mode::Shared { writer } else { waiter };
    let held = granted_to(
        other,
        first.with_waiting(|waiting| waiting.in_order = true),
        node,
    )
    .await;

    for revocation in [
        Revocation::Graceful,
        Revocation::Graceful,
        Revocation::Immediate,
    ] {
        let holder = one.inspect(&key(&name)).await.unwrap().holders.remove(0);
        one.revoke(&holder, revocation).await.unwrap();
    }
    drop(held);
}

async fn draw_a_token_after_its_counter_is_lost(server: &Server, backend: &Arc<RedisBackend>) {
    let mut raw = server.raw().await;
    for _ in 0..2 {
        granted_to(backend, request("k"), false)
            .await
            .release()
            .await
            .unwrap();
    }
    let counters: Vec<String> = redis::cmd("KEYS")
        .arg("*:token")
        .query_async(&mut raw)
        .await
        .unwrap();
    () = redis::cmd("DEL")
        .arg(counters)
        .query_async(&mut raw)
        .await
        .unwrap();
    granted_to(backend, request("k"), false).await;
}

async fn vote(backend: &Arc<RedisBackend>) {
    let node = || Arc::clone(backend);
    let state = node().read_state(None).await.unwrap();
    let record = EpochRecord {
        incarnation: state.incarnation,
        version: state.version,
        durable: false,
        largest_ttl: ttl(10_000),
        above: state.highest_token,
    };
    node().record_epoch(record).await.unwrap();
    for mode in [Mode::Exclusive, Mode::Shared] {
        let asked = request(&format!("vote {mode:?}")).with_mode(mode);
        let lease = granted_to(backend, asked.clone(), true).await;
        let token = lease.fencing_token().unwrap().get() + 1_000_000_000;
        let vote = node()
            .raise_token(asked, TERMS, FencingToken::new(token))
            .await;
        assert_eq!(vote.unwrap(), TokenVote::Accepted);
        lease.release().await.unwrap();
    }
}

/// Runs through the branches of the scripts of records.
async fn write_and_read_a_record(backend: &Arc<RedisBackend>) {
    let lease = granted_to(backend, request("record").with_ttl(ttl(10_000)), false).await;
    for sequence in [1, 1, 2] {
        let write = RecordWrite::new(sequence, "value").unwrap();
        lease.clone().write_record(write).await.unwrap();
        for (while_held, watch) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut read = RecordRead::new(key("record"));
            (read.while_held, read.watch) = (while_held, watch);
            let reading = Arc::clone(backend).read_record(read).await.unwrap();
            assert!(reading.record.is_some());
        }
    }
    lease
        .clone()
        .write_record(RecordWrite::clear(3))
        .await
        .unwrap();
    lease.clone().release().await.unwrap();
    lease.write_record(RecordWrite::clear(4)).await.unwrap_err();
}

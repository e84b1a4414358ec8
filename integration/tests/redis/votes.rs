//! Tests on a real server of the properties that the quorum's proof assumes.

use std::{sync::Arc, time::Duration};

use crate::support::{Server, TERMS, granted_to, key, request, token, ttl};
use leasehold_core::{
    ErrorKind, FencingToken, Mode, Released,
    backend::{Attempt, LockBackend, Request},
    quorum::{
        Durability, EpochRecord, NodeState, NodeToken, QuorumNode, TokenVote, VoteRequirements,
    },
};
use leasehold_redis::redis;

const TTL: u64 = 10_000;

/// The quorum's model assumes that a duplicate request which arrives after a renewal never shortens
/// the lock.
#[tokio::test]
async fn duplicate_request_after_renewal_does_not_shorten_the_lock() {
    let server = Server::start();
    let backend = server.backend().await;
    for mode in [Mode::Exclusive, Mode::Shared] {
        let name = format!("{mode:?}");
        let left = async || {
            backend.inspect(&key(&name)).await.unwrap().holders[0]
                .expires_in
                .unwrap()
        };
        let asked = request(&name).with_mode(mode).with_ttl(ttl(TTL));
        let lease = granted_to(&backend, asked.clone(), true).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(left().await < Duration::from_millis(TTL - 250));
        Arc::clone(&lease).renew().await.unwrap();
        let renewed = left().await;
        assert!(
            renewed > Duration::from_millis(TTL - 250),
            "{mode:?}: {renewed:?} left after the renewal"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
        granted_to(&backend, asked, true).await;
        let again = left().await;
        assert!(
            again > Duration::from_millis(TTL - 250),
            "{mode:?}: {again:?} left after the request came again"
        );
        // The other grant has the same owner.
        lease.release().await.unwrap();
        assert!(
            backend
                .inspect(&key(&name))
                .await
                .unwrap()
                .holders
                .is_empty()
        );
    }
}

/// An acquisition that stops waiting may already hold the lock on this server. A release under one
/// of its ids must not free a lock that it holds under another.
#[tokio::test]
async fn what_an_acquisition_leaves_late_frees_nothing_that_it_holds() {
    let server = Server::start();
    let backend = server.backend().await;
    for mode in [Mode::Exclusive, Mode::Shared] {
        let name = format!("late {mode:?}");
        let first = request(&name)
            .with_mode(mode)
            .with_ttl(ttl(TTL))
            .with_waiting(|waiting| waiting.keeps_waiting = true);
        let healing = first.clone().with_owner(first.owner().again(1));
        let lease = granted_to(&backend, healing.clone(), true).await;
        Arc::clone(&backend)
            .stop_waiting(first.clone())
            .await
            .unwrap();
        Arc::clone(&backend).stop_waiting(healing).await.unwrap();
        assert_eq!(
            Arc::clone(&backend).withdraw(first).await.unwrap(),
            Released::AlreadyLost
        );
        assert_eq!(lease.release().await.unwrap(), Released::Freed, "{mode:?}");
    }
}

/// The scripts draw and accept tokens as the functions of the model and the simulation do.
#[tokio::test]
async fn the_scripts_decide_on_tokens_as_the_model_does() {
    let server = Server::start();
    let backend = server.backend().await;
    let raise = async |asked: &Request, token| {
        Arc::clone(&backend)
            .raise_token(asked.clone(), TERMS, token)
            .await
            .unwrap()
    };
    let (mut stored, mut stale) = (None::<NodeToken>, None);
    for ahead in [0, 1_000, -1_000] {
        let floor = stored
            .map_or(1_000_000, |fence| fence.token.get())
            .saturating_add_signed(ahead);
        let asked = request("k").with_ttl(ttl(TTL));
        let requirements = VoteRequirements {
            token_floor: FencingToken::new(floor),
            ..TERMS
        };
        let attempt = Arc::clone(&backend)
            .request_vote(asked.clone(), requirements)
            .await
            .unwrap();
        let Attempt::Granted(lease) = attempt else {
            panic!("refused")
        };
        let drawn = NodeToken::granted(stored, FencingToken::new(floor), asked.owner());
        assert_eq!(lease.fencing_token(), Some(drawn.token));
        stored = Some(drawn);
        let holder = asked.owner();
        for delta in [0, -1, 0, 1, 1, -3, 0, 7] {
            let token = FencingToken::new(stored.unwrap().token.get().saturating_add_signed(delta));
            for asked in [&asked].into_iter().chain(&stale) {
                let fence = NodeToken {
                    token,
                    owner: asked.owner(),
                };
                let vote = NodeToken::accepts(stored, Some(holder), fence);
                assert_eq!(
                    raise(asked, token).await,
                    vote,
                    "{stored:?}, asked for {fence:?}"
                );
                if vote == TokenVote::Accepted {
                    stored = Some(fence);
                }
            }
        }
        assert_eq!(Arc::clone(&lease).release().await.unwrap(), Released::Freed);
        let token = FencingToken::new(stored.unwrap().token.get() + 1);
        assert_eq!(raise(&asked, token).await, TokenVote::Refused(None));
        stale = Some(asked);
    }
}

#[tokio::test]
async fn a_token_floor_is_exceeded_and_bounded() {
    let server = Server::start();
    let backend = server.backend().await;
    let with_floor = async |name, floor| {
        let requirements = VoteRequirements {
            token_floor: FencingToken::new(floor),
            ..TERMS
        };
        Arc::clone(&backend)
            .request_vote(request(name), requirements)
            .await
    };
    let now = token(&granted_to(&backend, request("other"), true).await);
    let floor = now + 1_000_000_000;
    let Attempt::Granted(lease) = with_floor("k", floor).await.unwrap() else {
        panic!("refused")
    };
    assert!(token(&lease) > floor);
    Arc::clone(&lease).release().await.unwrap();
    let next = granted_to(&backend, request("k"), true).await;
    assert!(token(&next) > token(&lease));
    for floor in [1 << 53, u64::MAX] {
        assert_eq!(
            with_floor("z", floor).await.unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}

fn record(recalled: &NodeState, largest_ttl: u64, above: u64) -> EpochRecord {
    EpochRecord {
        incarnation: recalled.incarnation.clone(),
        version: recalled.version.clone(),
        durable: false,
        largest_ttl: ttl(largest_ttl),
        above: FencingToken::new(above),
    }
}

/// Two clients attest a server. One read its state earlier and knows smaller tokens and a shorter
/// largest TTL.
#[tokio::test]
async fn late_attestation_lowers_neither_tokens_nor_largest_ttl() {
    let server = Server::start();
    let (one, other) = (server.backend().await, server.backend().await);
    let (early, late) = (
        Arc::clone(&one).read_state(None).await.unwrap(),
        Arc::clone(&other).read_state(None).await.unwrap(),
    );
    Arc::clone(&one)
        .record_epoch(record(&early, 60_000, 1_000))
        .await
        .unwrap();
    // A repetition is accepted, because the first answer may have been lost.
    Arc::clone(&one)
        .record_epoch(record(&early, 60_000, 1_000))
        .await
        .unwrap();
    let error = Arc::clone(&other)
        .record_epoch(record(&late, 10_000, 10))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let now = Arc::clone(&other).read_state(None).await.unwrap();
    assert_eq!(
        (now.largest_ttl, now.highest_token),
        (Some(ttl(60_000)), FencingToken::new(1_000))
    );
    // A client that has read the current state may record it.
    Arc::clone(&other)
        .record_epoch(record(&now, 10_000, 1_001))
        .await
        .unwrap();
    assert_eq!(
        Arc::clone(&one).read_state(None).await.unwrap().largest_ttl,
        Some(ttl(10_000))
    );
}

/// The run is the same, but the server has lost the state that was read.
#[tokio::test]
async fn server_wiped_after_the_look_is_not_marked() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut connection = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    let unmarked = Arc::clone(&backend).read_state(None).await.unwrap();
    Arc::clone(&backend)
        .record_epoch(record(&unmarked, TTL, 1_000))
        .await
        .unwrap();
    let marked = Arc::clone(&backend).read_state(None).await.unwrap();
    for recalled_since in [false, true] {
        let () = redis::cmd("FLUSHALL").query(&mut connection).unwrap();
        if recalled_since {
            Arc::clone(&backend).read_state(None).await.unwrap();
        }
        for recalled in [&unmarked, &marked] {
            let error = Arc::clone(&backend)
                .record_epoch(record(recalled, TTL, 2_000))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
        }
    }
    assert_eq!(
        Arc::clone(&backend)
            .read_state(None)
            .await
            .unwrap()
            .eligibility
            .durability,
        Durability::Unknown
    );
}

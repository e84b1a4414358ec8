//! Shared locks, permits, inspection and revocation.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use crate::support::{Server, granted, key, refused, request, token, ttl, until};
use leasehold_core::{
    ErrorKind, Mode, Released, Revocation, RevokeOutcome,
    backend::{LockBackend, Request},
};
use leasehold_redis::redis;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

fn shared(name: &str) -> Request {
    request(name).with_mode(Mode::Shared)
}

fn permit(name: &str, of: u32) -> Request {
    request(name).with_permit_of(NonZeroU32::new(of).unwrap())
}

#[tokio::test]
async fn readers_share_and_writers_exclude() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let writer = granted(&a, request("k")).await;
    refused(&b, shared("k")).await;
    writer.clone().release().await.unwrap();
    let (one, two) = (
        granted(&a, shared("k")).await,
        granted(&b, shared("k").with_ttl(ttl(60_000))).await,
    );
    assert_eq!(token(&one), token(&two), "readers never fence each other");
    assert!(token(&one) > token(&writer));
    let contention = refused(&b, request("k")).await;
    assert!(
        contention.retry_after.unwrap() > Duration::from_secs(55),
        "as long as the last reader"
    );
    assert_eq!(Arc::clone(&two).release().await.unwrap(), Released::Freed);
    let contention = refused(&b, request("k")).await;
    assert!(
        contention.retry_after.unwrap() < Duration::from_secs(31),
        "as long as the reader that is left"
    );
    Arc::clone(&one).renew().await.unwrap();
    assert_eq!(Arc::clone(&one).release().await.unwrap(), Released::Freed);
    assert_eq!(
        Arc::clone(&one).release().await.unwrap(),
        Released::AlreadyLost
    );
    assert_eq!(
        one.clone().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    let next = granted(&b, request("k")).await;
    assert!(token(&next) > token(&one));
    next.release().await.unwrap();
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_first_reader_s_token_is_below_the_next_writer_s() {
    let server = Server::start();
    let backend = server.backend().await;
    for _ in 0..20 {
        let reader = granted(&backend, shared("k")).await;
        reader.clone().release().await.unwrap();
        let writer = granted(&backend, request("k")).await;
        assert!(token(&writer) > token(&reader));
        writer.clone().release().await.unwrap();
        let reader = granted(&backend, shared("k")).await;
        assert!(token(&reader) > token(&writer));
        reader.release().await.unwrap();
    }
}

#[tokio::test]
async fn no_reader_overtakes_a_waiting_writer() {
    let server = Server::start();
    let (a, b, c) = (
        server.backend().await,
        server.pushed().await,
        server.pushed().await,
    );
    let reader = granted(&a, shared("k")).await;
    let writer = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    until("registered", || async {
        !a.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    refused(&c, shared("k")).await;
    let late = tokio::spawn(Arc::clone(&c).acquire(shared("k")));
    reader.release().await.unwrap();
    let writer = timeout(SOON, writer)
        .await
        .expect("the writer was not woken")
        .unwrap()
        .unwrap();
    assert!(!late.is_finished());
    writer.release().await.unwrap();
    timeout(SOON, late)
        .await
        .expect("the reader was not woken")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_writer_that_gives_up_lets_the_readers_in() {
    let server = Server::start();
    let (a, b, c) = (
        server.backend().await,
        server.backend().await,
        server.pushed().await,
    );
    let reader = granted(&a, shared("k")).await;
    let wanted = request("k");
    let writer = tokio::spawn(Arc::clone(&b).acquire(wanted.clone()));
    until("registered", || async {
        !a.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    let late = tokio::spawn(Arc::clone(&c).acquire(shared("k")));
    tokio::time::sleep(Duration::from_millis(50)).await;
    wanted.cancel();
    writer.await.unwrap().unwrap_err();
    let late = timeout(SOON, late)
        .await
        .expect("the reader was not woken")
        .unwrap()
        .unwrap();
    late.release().await.unwrap();
    reader.release().await.unwrap();
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn readers_that_died_do_not_hold_and_do_not_come_back() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    let dead = granted(&a, shared("k").with_ttl(ttl(300))).await;
    let writer = timeout(SOON, Arc::clone(&b).acquire(request("k")))
        .await
        .expect("the expiry did not wake")
        .unwrap();
    assert_eq!(
        dead.clone().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    writer.release().await.unwrap();
    let reader = granted(&b, shared("k")).await;
    assert_eq!(
        dead.clone().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(dead.release().await.unwrap(), Released::AlreadyLost);
    refused(&a, request("k")).await;
    assert_eq!(reader.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn one_dead_reader_among_living_ones_is_no_longer_listed() {
    let server = Server::start();
    let backend = server.backend().await;
    let dead = granted(&backend, shared("k").with_ttl(ttl(100))).await;
    let alive = granted(&backend, shared("k")).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(backend.inspect(&key("k")).await.unwrap().holders.len(), 1);
    assert_eq!(dead.release().await.unwrap(), Released::AlreadyLost);
    refused(&backend, request("k")).await;
    alive.release().await.unwrap();
    granted(&backend, request("k")).await;
}

#[tokio::test]
async fn permits_are_counted_and_freed() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    let first = granted(&a, permit("k", 2)).await;
    let second = granted(&b, permit("k", 2)).await;
    assert!(first.fencing_token().is_none());
    refused(&a, permit("k", 2)).await;
    first.clone().renew().await.unwrap();
    let waiting = tokio::spawn(Arc::clone(&b).acquire(permit("k", 2).with_label("patient")));
    until("registered", || async {
        let waiters = a.inspect(&key("k")).await.unwrap().waiters;
        waiters
            .iter()
            .any(|waiter| waiter.label == "patient" && waiter.mode.is_some_and(Mode::is_permit))
    })
    .await;
    assert_eq!(first.clone().release().await.unwrap(), Released::Freed);
    let third = timeout(SOON, waiting)
        .await
        .expect("never woken")
        .unwrap()
        .unwrap();
    assert_eq!(first.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    second.release().await.unwrap();
    third.release().await.unwrap();
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_permit_of_a_dead_holder_comes_back_by_itself() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    let dead = granted(&a, permit("k", 1).with_ttl(ttl(300))).await;
    let next = timeout(SOON, Arc::clone(&b).acquire(permit("k", 1)))
        .await
        .expect("never woken")
        .unwrap();
    assert_eq!(dead.release().await.unwrap(), Released::AlreadyLost);
    next.release().await.unwrap();
}

#[tokio::test]
async fn other_permit_count_while_held_is_an_error_naming_both() {
    let server = Server::start();
    let backend = server.backend().await;
    let held = granted(&backend, permit("k", 3)).await;
    let error = Arc::clone(&backend)
        .try_acquire(permit("k", 5))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.to_string().contains('3') && error.to_string().contains('5'),
        "{error}"
    );
    held.release().await.unwrap();
    granted(&backend, permit("k", 5)).await;
}

#[tokio::test]
async fn permits_and_locks_of_one_name_do_not_touch() {
    let server = Server::start();
    let backend = server.backend().await;
    let _lock = granted(&backend, request("k")).await;
    let _permit = granted(&backend, permit("k", 1)).await;
}

#[tokio::test]
async fn inspection_shows_who_holds() {
    let server = Server::start();
    let backend = server.backend().await;
    assert!(backend.inspect(&key("k")).await.unwrap().holders.is_empty());
    let lease = granted(&backend, request("k").with_label("host/7")).await;
    let _permit = granted(&backend, permit("k", 4).with_label("p")).await;
    let seen = backend.inspect(&key("k")).await.unwrap();
    let [writer, permit] = seen.holders.as_slice() else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (writer.mode, writer.label.as_str()),
        (Some(Mode::Exclusive), "host/7")
    );
    // A counter serves many locks: its value is not this holder's token.
    assert_eq!(writer.token, None);
    assert!(writer.expires_in.unwrap() > Duration::from_secs(29));
    assert_eq!(
        (permit.mode, permit.label.as_str()),
        (
            Some(Mode::Permit {
                of: 4.try_into().unwrap()
            }),
            "p"
        )
    );
    lease.release().await.unwrap();

    let () = redis::cmd("SET")
        .arg("k")
        .arg("5f0e")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    let foreign = &backend.inspect(&key("k")).await.unwrap().holders[0];
    assert_eq!(
        (foreign.mode, foreign.label.as_str(), foreign.expires_in),
        (None, "", None)
    );
    assert_eq!(foreign.id, b"5f0e");
}

#[tokio::test]
async fn breaking_gently_stops_renewals_and_keeps_the_deadline() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    for (held, rival) in [
        (request("w"), request("w")),
        (shared("r"), request("r")),
        (permit("p", 1), permit("p", 1)),
    ] {
        let key = held.key().clone();
        let first = granted(&a, held.clone().with_ttl(ttl(60_000))).await;
        let holder = b.inspect(&key).await.unwrap().holders.remove(0);
        b.revoke(&holder, Revocation::Graceful).await.unwrap();
        assert_eq!(first.release().await.unwrap(), Released::Freed);
        let held = granted(&a, held.as_new_owner().with_ttl(ttl(700))).await;
        let holder = b.inspect(&key).await.unwrap().holders.remove(0);
        let RevokeOutcome::FreeWithin(Some(left)) =
            b.revoke(&holder, Revocation::Graceful).await.unwrap()
        else {
            panic!("not gentle")
        };
        assert!(left <= Duration::from_millis(700));
        assert_eq!(
            held.clone().renew().await.unwrap_err().kind(),
            ErrorKind::Revoked
        );
        refused(&b, rival.clone()).await;
        assert_eq!(
            b.revoke(&holder, Revocation::Graceful).await.unwrap(),
            RevokeOutcome::AlreadyGone
        );
        timeout(SOON, Arc::clone(&b).acquire(rival))
            .await
            .expect("never free")
            .unwrap();
        assert_eq!(held.release().await.unwrap(), Released::AlreadyLost);
    }
}

#[tokio::test]
async fn breaking_now_frees_at_once_and_never_hits_a_newer_holder() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    for wanted in [request("k"), shared("k"), permit("k", 1)] {
        let old = granted(&a, wanted.clone()).await;
        let holder = b.inspect(&key("k")).await.unwrap().holders.remove(0);
        assert_eq!(
            b.revoke(&holder, Revocation::Immediate).await.unwrap(),
            RevokeOutcome::Freed
        );
        let newer = granted(&b, wanted.as_new_owner()).await;
        for revocation in [Revocation::Immediate, Revocation::Graceful] {
            assert_eq!(
                b.revoke(&holder, revocation).await.unwrap(),
                RevokeOutcome::AlreadyGone
            );
        }
        assert_eq!(old.release().await.unwrap(), Released::AlreadyLost);
        newer.clone().renew().await.unwrap();
        assert_eq!(newer.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn a_foreign_holder_without_an_end_can_be_broken() {
    let server = Server::start();
    let backend = server.backend().await;
    let () = redis::cmd("SET")
        .arg("k")
        .arg("5f0e")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    let holder = backend.inspect(&key("k")).await.unwrap().holders.remove(0);
    assert_eq!(
        backend.revoke(&holder, Revocation::Graceful).await.unwrap(),
        RevokeOutcome::FreeWithin(None)
    );
    let holder = backend.inspect(&key("k")).await.unwrap().holders.remove(0);
    assert_eq!(
        backend
            .revoke(&holder, Revocation::Immediate)
            .await
            .unwrap(),
        RevokeOutcome::Freed
    );
    granted(&backend, request("k")).await;
}

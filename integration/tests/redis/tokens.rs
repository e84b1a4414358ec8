//! Tokens that plain commands draw. They grow even if the counter is lost or set back.

use std::{sync::Arc, time::Duration};

use crate::support::{Server, granted, refused, request, token, until};
use leasehold_core::{ErrorKind, Mode, backend::LockBackend};
use leasehold_redis::{RedisBackend, redis};

/// The token counter of the slot of `k`.
const COUNTER: &str = "{25578}:lh4:token";

async fn drawn(backend: &Arc<RedisBackend>) -> u64 {
    let lease = granted(backend, request("k")).await;
    let token = token(&lease);
    lease.release().await.unwrap();
    token
}

async fn calls(server: &Server, command: &str) -> usize {
    let stats = server.info("commandstats").await;
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn they_grow_when_the_server_comes_back_with_older_data() {
    for order in [[0, 1], [1, 0]] {
        let mut server = Server::start();
        let backends = [server.backend().await, server.backend().await];
        for backend in &backends {
            drawn(backend).await;
        }
        let () = redis::cmd("SAVE")
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        let mut last = 0;
        for n in 0..200 {
            let next = drawn(&backends[n % 2]).await;
            assert!(next > last);
            last = next;
        }
        assert!(
            calls(&server, "incrby").await >= 200,
            "the plain way was not taken"
        );
        server.restart();
        let kept: u64 = redis::cmd("GET")
            .arg(COUNTER)
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        assert!(kept < last, "the data is not older");
        for n in order {
            let backend = &backends[n];
            until("reconnected", || async {
                backend.inspect(&crate::support::key("k")).await.is_ok()
            })
            .await;
            for _ in 0..3 {
                let next = drawn(backend).await;
                assert!(next > last, "{next} after {last}");
                last = next;
            }
        }
    }
}

#[tokio::test]
async fn a_readers_token_grows_when_older_data_comes_back() {
    let shared = || request("k").with_mode(Mode::Shared);
    // The restored data has no lock, or one that readers share.
    for held in [false, true] {
        let mut server = Server::start();
        let backend = server.backend().await;
        drawn(&backend).await;
        let before = if held {
            Some(granted(&backend, shared()).await)
        } else {
            None
        };
        let () = redis::cmd("SAVE")
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        if let Some(before) = before {
            before.release().await.unwrap();
        }
        let last = drawn(&backend).await;
        server.restart();
        until("reconnected", || async {
            backend.inspect(&crate::support::key("k")).await.is_ok()
        })
        .await;
        assert_eq!(server.leftovers().await.is_empty(), !held);
        let readers = [
            granted(&backend, shared()).await,
            granted(&server.backend().await, shared()).await,
        ];
        for reader in &readers {
            assert!(
                token(reader) > last,
                "{} after {last}, held: {held}",
                token(reader)
            );
        }
        assert_eq!(
            token(&readers[0]),
            token(&readers[1]),
            "readers fence each other off"
        );
        let last = token(&readers[0]);
        () = redis::cmd("DEL")
            .arg("k")
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        assert!(drawn(&backend).await > last);
    }
}

#[tokio::test]
async fn readers_that_share_have_one_token() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let reader = |backend| granted(backend, request("k").with_mode(Mode::Shared));
    let first = reader(&a).await;
    // Another lock of the slot moves the counter.
    for _ in 0..3 {
        granted(&b, request("{k}a")).await.release().await.unwrap();
    }
    let second = reader(&b).await;
    assert_eq!(token(&first), token(&second));
}

#[tokio::test]
async fn they_grow_when_the_counter_is_lost_in_mid_run() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    let mut last = drawn(&backend).await;
    for loss in [
        vec!["DEL", COUNTER],
        vec!["FLUSHALL"],
        vec!["SET", COUNTER, "7"],
        vec!["UNLINK", COUNTER],
    ] {
        let mut cmd = redis::Cmd::new();
        for word in &loss {
            cmd.arg(word);
        }
        let _: redis::Value = cmd.query_async(&mut raw).await.unwrap();
        for _ in 0..3 {
            let next = drawn(&backend).await;
            assert!(next > last, "{next} after {last}, {loss:?}");
            last = next;
        }
        let left: i64 = redis::cmd("TTL")
            .arg(COUNTER)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert!(left > 80_000, "{left}");
    }
}

#[tokio::test]
async fn counter_corrupted_while_running_is_a_typed_error() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    for ruined in ["9007199254740991", "9223372036854775807", "many"] {
        let () = redis::cmd("DEL")
            .arg(COUNTER)
            .query_async(&mut raw)
            .await
            .unwrap();
        drawn(&backend).await;
        let () = redis::cmd("SET")
            .arg(COUNTER)
            .arg(ruined)
            .query_async(&mut raw)
            .await
            .unwrap();
        for _ in 0..2 {
            let error = Arc::clone(&backend)
                .try_acquire(request("k"))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedResponse, "{error}");
            assert!(error.to_string().contains("2^53"), "{error}");
            until("given back", || async {
                server.leftovers().await.is_empty()
            })
            .await;
        }
    }
}

#[tokio::test]
async fn readers_are_between_the_writers_of_one_slot() {
    let server = Server::start();
    let backend = server.backend().await;
    // Two names of one slot share a counter.
    let (a, b) = ("{k}a", "k");
    let mut last = 0;
    for _ in 0..5 {
        for name in [a, b] {
            let writer = granted(&backend, request(name)).await;
            assert!(token(&writer) > last);
            last = token(&writer);
            writer.release().await.unwrap();
            let reader = granted(&backend, request(name).with_mode(Mode::Shared)).await;
            assert!(token(&reader) > last);
            last = token(&reader);
            reader.release().await.unwrap();
        }
    }
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(keys, [COUNTER]);
}

#[tokio::test]
async fn who_is_refused_by_the_plain_way_and_waits_is_woken() {
    let server = Server::start();
    let (a, b) = (server.pushed().await, server.pushed().await);
    drawn(&a).await;
    drawn(&b).await;
    let held = granted(&a, request("k")).await;
    refused(&b, request("k")).await;
    let before = token(&held);
    let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    until("registered", || async {
        !a.inspect(&crate::support::key("k"))
            .await
            .unwrap()
            .waiters
            .is_empty()
    })
    .await;
    held.release().await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("not woken")
        .unwrap()
        .unwrap();
    assert!(token(&next) > before);
}

/// Behind a proxy, the server can change while the connection stays open. There are no pushes then.
#[tokio::test]
async fn without_pushes_the_script_draws_every_token() {
    let server = Server::start();
    let backend = RedisBackend::connect(&format!("{}?notifications=poll", server.url()))
        .await
        .unwrap();
    for _ in 0..5 {
        drawn(&backend).await;
    }
    assert_eq!(calls(&server, "incrby").await, 0);
}

#[tokio::test]
async fn yielding_is_short_without_waiters_and_works_with_them() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let polite = || request("k").with_waiting(|waiting| waiting.yields = true);
    let first = drawn(&a).await;
    let before = calls(&server, "time").await;
    let held = granted(&a, polite()).await;
    assert!(token(&held) > first);
    assert_eq!(calls(&server, "time").await, before, "the long script ran");
    // A waiter registers and makes no further attempt.
    let absent = request("k").with_waiting(|waiting| waiting.keeps_waiting = true);
    refused(&b, absent.clone()).await;
    held.release().await.unwrap();
    let contention = refused(&a, polite()).await;
    assert!(
        contention.retry_after.unwrap() < Duration::from_secs(1),
        "{contention:?}"
    );
    let next = granted(&b, absent).await;
    next.release().await.unwrap();
    // The same with a lost counter.
    let () = redis::cmd("SET")
        .arg(COUNTER)
        .arg("x")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    let error = Arc::clone(&a).try_acquire(polite()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedResponse, "{error}");
    let () = redis::cmd("DEL")
        .arg(COUNTER)
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    granted(&a, polite()).await.release().await.unwrap();
    until("given back", || async {
        server.leftovers().await.is_empty()
    })
    .await;
}

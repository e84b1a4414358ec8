//! Exclusive locks: exclusion, tokens, renewal, release, expiry.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{Server, granted, refused, request, token, ttl};
use leasehold_core::{
    ErrorKind, Released,
    backend::{KeepAlive, LockBackend},
};
use leasehold_redis::redis;

/// The token counter of the slot of `k`.
const COUNTER: &str = "{25578}:lh4:token";

#[tokio::test]
async fn one_holds_and_the_next_has_a_larger_token() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let first = granted(&a, request("k")).await;
    assert_eq!(first.keep_alive(), KeepAlive::PerLease);
    let contention = refused(&b, request("k")).await;
    let left = contention.retry_after.unwrap();
    assert!(
        left > Duration::from_secs(29) && left < Duration::from_secs(31),
        "{left:?}"
    );
    assert_eq!(Arc::clone(&first).release().await.unwrap(), Released::Freed);
    let second = granted(&b, request("k")).await;
    assert!(token(&second) > token(&first));
    assert!(token(&second) < 1 << 53);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_tasks_never_hold_one_key_together() {
    let server = Server::start();
    let backends = [server.backend().await, server.backend().await];
    let (held, tokens) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let tasks = (0..300).map(|n: usize| {
        let (backend, held, tokens) = (
            Arc::clone(&backends[n % 2]),
            Arc::clone(&held),
            Arc::clone(&tokens),
        );
        tokio::spawn(async move {
            for _ in 0..3 {
                let lease = Arc::clone(&backend).acquire(request("k")).await.unwrap();
                assert!(!held.swap(true, Ordering::SeqCst), "two hold");
                let token = usize::try_from(token(&lease)).unwrap();
                assert!(tokens.swap(token, Ordering::SeqCst) < token, "a token fell");
                held.store(false, Ordering::SeqCst);
                assert_eq!(lease.release().await.unwrap(), Released::Freed);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_pair_is_two_plain_commands_and_a_script_and_no_push() {
    let server = Server::start();
    let backend = server.backend().await;
    Arc::clone(&granted(&backend, request("k")).await)
        .release()
        .await
        .unwrap();
    let mut raw = server.raw().await;
    let () = redis::cmd("CONFIG")
        .arg("RESETSTAT")
        .query_async(&mut raw)
        .await
        .unwrap();
    for _ in 0..10 {
        Arc::clone(&backend)
            .acquire(request("k"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut raw)
        .await
        .unwrap();
    for command in ["set", "incrby", "evalsha"] {
        assert!(
            stats.contains(&format!("cmdstat_{command}:calls=10,")),
            "{stats}"
        );
    }
    let tracking: String = redis::cmd("INFO")
        .arg("stats")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert!(tracking.contains("tracking_total_keys:0\r\n"), "{tracking}");
}

#[tokio::test]
async fn a_lock_expires_and_its_holder_learns_it() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let lost = granted(&a, request("k").with_ttl(ttl(100))).await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    let next = granted(&b, request("k")).await;
    assert_eq!(
        Arc::clone(&lost).renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(
        Arc::clone(&lost).release().await.unwrap(),
        Released::AlreadyLost
    );
    assert_eq!(
        Arc::clone(&lost).release().await.unwrap(),
        Released::AlreadyLost
    );
    // The successor is untouched.
    Arc::clone(&next).renew().await.unwrap();
    assert_eq!(next.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn a_renewal_moves_the_deadline_here_and_there() {
    let server = Server::start();
    let backend = server.backend().await;
    let request = request("k").with_ttl(ttl(2_000));
    let lease = granted(&backend, request.clone()).await;
    let before = lease.valid_until();
    tokio::time::sleep(Duration::from_millis(300)).await;
    Arc::clone(&lease).renew().await.unwrap();
    assert!(lease.valid_until() > before);
    let left: i64 = redis::cmd("PTTL")
        .arg("k")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    let believed = lease.valid_until().remaining(request.now());
    assert!(
        left > 1_900 && believed < Duration::from_millis(u64::try_from(left).unwrap()),
        "{left} {believed:?}"
    );
}

#[tokio::test]
async fn a_renewal_never_revives_what_was_released() {
    let server = Server::start();
    let backend = server.backend().await;
    for _ in 0..500 {
        let lease = granted(&backend, request("k")).await;
        let renewal = tokio::spawn(Arc::clone(&lease).renew());
        assert_eq!(Arc::clone(&lease).release().await.unwrap(), Released::Freed);
        drop(renewal.await.unwrap());
        assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Lost);
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_loss_is_told_at_the_renewal() {
    let server = Server::start();
    let backend = server.backend().await;
    let lease = granted(&backend, request("k")).await;
    let () = redis::cmd("SET")
        .arg("k")
        .arg("somebody")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(
        Arc::clone(&lease).renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(lease.release().await.unwrap(), Released::AlreadyLost);
    let value: String = redis::cmd("GET")
        .arg("k")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(value, "somebody");
}

#[tokio::test]
async fn tokens_grow_across_a_restart_without_persistence_and_a_flush() {
    let mut server = Server::start();
    let backend = server.backend().await;
    let mut tokens = BTreeSet::new();
    let mut last = 0;
    for round in 0..6 {
        match round {
            2 => {
                server.restart();
                // The broken connection is noticed at once, so this only costs time.
                crate::support::until("reconnected", || async {
                    backend.inspect(&crate::support::key("k")).await.is_ok()
                })
                .await;
            }
            4 => {
                let () = redis::cmd("FLUSHALL")
                    .query_async(&mut server.raw().await)
                    .await
                    .unwrap();
            }
            _ => {}
        }
        let lease = granted(&backend, request("k")).await;
        assert!(token(&lease) > last, "round {round}");
        last = token(&lease);
        assert!(tokens.insert(last));
        Arc::clone(&lease).release().await.unwrap();
    }
}

#[tokio::test]
async fn corrupted_counter_is_a_typed_error_and_leaves_no_lock() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    for ruined in ["9007199254740991", "9007199254740990", "many"] {
        let () = redis::cmd("SET")
            .arg(COUNTER)
            .arg(ruined)
            .query_async(&mut raw)
            .await
            .unwrap();
        let error = Arc::clone(&backend)
            .try_acquire(request("k"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedResponse, "{error}");
        assert!(error.to_string().contains("2^53"), "{error}");
        assert_eq!(server.leftovers().await, Vec::<String>::new());
        let kept: String = redis::cmd("GET")
            .arg(COUNTER)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert_eq!(kept, ruined);
    }
}

#[tokio::test]
async fn a_script_that_the_server_forgot_is_sent_again() {
    let server = Server::start();
    let backend = server.backend().await;
    let () = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    granted(&backend, request("k"))
        .await
        .release()
        .await
        .unwrap();
}

/// The first poll of a release queues it ahead of every operation of this backend that starts
/// later.
#[tokio::test]
async fn a_release_is_ordered_before_later_acquires() {
    use futures_util::FutureExt;
    let server = Server::start();
    let backend = server.backend().await;
    for round in 0..300 {
        // Every third round has many other operations, so that the release is batched.
        let crowd: Vec<_> = (0..if round % 3 == 0 { 200 } else { 0 })
            .map(|n| {
                let backend = Arc::clone(&backend);
                tokio::spawn(async move {
                    granted(&backend, request(&format!("crowd{n}")))
                        .await
                        .release()
                        .await
                })
            })
            .collect();
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let lease = granted(&backend, request("k")).await;
        let mut release = lease.release();
        let early = (&mut release).now_or_never();
        // The next acquisition uses plain commands in half of the rounds and a script in the
        // others.
        let next = match round % 4 {
            0 | 1 => granted(&backend, request("k")).await,
            _ => {
                granted(
                    &backend,
                    request("k").with_waiting(|waiting| waiting.yields = true),
                )
                .await
            }
        };
        assert_eq!(
            match early {
                Some(done) => done,
                None => release.await,
            }
            .unwrap(),
            Released::Freed
        );
        next.release().await.unwrap();
        for task in crowd {
            task.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_dead_server_is_told_quickly_and_its_return_needs_no_help() {
    let mut server = Server::start();
    let backend = server.backend().await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    let error = Arc::clone(&backend)
        .try_acquire(request("k"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    server.restart();
    granted(&backend, request("k"))
        .await
        .release()
        .await
        .unwrap();
}

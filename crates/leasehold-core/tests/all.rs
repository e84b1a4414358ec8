//! `all`: several locks at once, all or none, without deadlock.

mod support;

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use leasehold_core::{
    ErrorKind, LeaseInfo, LockClient, LossReason, Mode, Released, Renewal, Revocation,
};
use leasehold_local::MemoryBackend;
use support::{secs, settle, simulated, spied, spy::Spy, two_processes};

/// Returns whether another process could lock `key` now.
async fn is_free(client: &LockClient, key: &str) -> bool {
    client.mutex(key).try_lock().await.unwrap().is_some()
}

#[tokio::test(start_paused = true)]
async fn leases_are_in_key_order_and_duplicates_are_one() {
    let (client, _) = simulated();
    let all = client
        .all(["c", "a", "c"])
        .with_shared(["b", "a", "b"])
        .lock()
        .await
        .unwrap();
    let held: Vec<_> = all
        .leases()
        .iter()
        .map(|lease| (lease.key().to_string(), lease.mode()))
        .collect();
    let (exclusive, shared) = (Mode::Exclusive, Mode::Shared);
    assert_eq!(
        held,
        [
            ("a".into(), exclusive),
            ("b".into(), shared),
            ("c".into(), exclusive)
        ]
    );
    assert!(all.lease("b").is_some() && all.lease("d").is_none());
    assert!(all.fencing_token("c") > all.fencing_token("a"));
    let reader = client.rwlock("b").try_read().await.unwrap();
    assert!(reader.is_some());
    let released = all.release().await.unwrap();
    assert_eq!(released.len(), 3);
    assert!(released.iter().all(|(_, how)| *how == Released::Freed));
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_refused_typed() {
    let (client, _) = simulated();
    let names = |count: usize| (0..count).map(|n| format!("key/{n:03}"));
    for all in [
        client.all::<&str>([]),
        client.all(names(65)),
        client.all(["a", ""]),
        client.all(["a"]).with_shared([""]),
        client.all(["a"]).with_ttl(Duration::ZERO),
    ] {
        for outcome in [
            all.lock().await.err(),
            all.try_lock().await.err(),
            all.lock_timeout(Duration::from_secs(1)).await.err(),
        ] {
            assert_eq!(outcome.unwrap().kind(), ErrorKind::InvalidInput);
        }
    }
    let most = client.all(names(64)).lock().await.unwrap();
    assert!(most.is_held() && most.leases().len() == 64);
    let shared = client.all::<&str>([]).with_shared(["a"]).lock().await;
    assert_eq!(shared.unwrap().leases()[0].mode(), Mode::Shared);
}

#[tokio::test(start_paused = true)]
async fn refused_attempt_keeps_nothing() {
    let (client, other) = two_processes();
    let held = other.mutex("b").lock().await.unwrap();
    let all = client.all(["a", "b", "c"]);
    assert!(all.try_lock().await.unwrap().is_none());
    assert!(is_free(&other, "a").await && is_free(&other, "c").await);
    held.release().await.unwrap();
    assert!(all.try_lock().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn waiter_keeps_smaller_keys_and_gives_back_larger_ones() {
    let (client, other) = two_processes();
    let held = other.mutex("b").lock().await.unwrap();
    let all = client.all(["a", "b", "c"]);
    let mut waiting = Box::pin(all.lock());
    assert!((&mut waiting).now_or_never().is_none());
    settle().await;
    assert!(!is_free(&other, "a").await, "the smaller key is kept");
    assert!(
        is_free(&other, "c").await,
        "a lock behind the refusal could close a cycle"
    );
    let local = client.mutex("c");
    assert!(
        local.lock().now_or_never().is_some(),
        "a local place behind the refusal could close a cycle"
    );
    held.release().await.unwrap();
    assert!(waiting.await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn waiter_for_a_local_task_holds_no_larger_key() {
    let (client, other) = two_processes();
    let held = client.mutex("b").lock().await.unwrap();
    let all = client.all(["a", "b", "c"]);
    let mut waiting = Box::pin(all.lock());
    assert!((&mut waiting).now_or_never().is_none());
    assert!(client.mutex("c").lock().now_or_never().is_some());
    assert!(is_free(&other, "c").await);
    held.release().await.unwrap();
    assert!(waiting.await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn time_limit_gives_back_every_part() {
    let (client, other) = two_processes();
    for holder in [&client, &other] {
        let held = holder.mutex("b").lock().await.unwrap();
        let all = client.all(["a", "b", "c"]);
        let limited = all.lock_timeout(Duration::from_secs(3)).await.unwrap();
        assert!(limited.is_none());
        settle().await;
        assert!(is_free(&other, "a").await && is_free(&other, "c").await);
        assert!(!is_free(&other, "b").await);
        held.release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_limit_covers_all_keys() {
    let (client, other) = two_processes();
    let a = other.mutex("a").lock().await.unwrap();
    let b = other.mutex("b").lock().await.unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        a.release().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        b.release().await.unwrap();
    });
    let all = client.all(["a", "b"]);
    let limited = all.lock_timeout(Duration::from_secs(3)).await.unwrap();
    assert!(limited.is_none(), "each key alone is free within the limit");
    let limited = all.lock_timeout(Duration::from_secs(3)).await.unwrap();
    assert!(limited.is_some());
}

#[tokio::test(start_paused = true)]
async fn limit_without_an_answer_is_unavailable() {
    let (client, watched, _) = spied();
    watched.acquisitions_hang.store(true, SeqCst);
    let all = client.all(["a", "b"]);
    let error = all.lock_timeout(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("`a`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn future_dropped_at_any_poll_gives_back_everything() {
    for polls in 0..40 {
        let (client, other) = two_processes();
        let held = other.mutex("b").lock().await.unwrap();
        let all = client.all(["a", "b", "c"]);
        let mut waiting = Box::pin(all.lock());
        let mut held = Some(held);
        for poll in 0..polls {
            if (&mut waiting).now_or_never().is_some() {
                break;
            }
            if poll == polls / 2
                && let Some(held) = held.take()
            {
                held.release().await.unwrap();
            }
            tokio::task::yield_now().await;
        }
        drop((waiting, held));
        for key in ["a", "b", "c"] {
            let mutex = other.mutex(key);
            let free = mutex.lock_timeout(Duration::from_secs(1)).await.unwrap();
            assert!(free.is_some(), "`{key}` is held after {polls} polls");
            let mutex = client.mutex(key);
            drop(free);
            let free = mutex.lock_timeout(Duration::from_secs(1)).await.unwrap();
            assert!(free.is_some(), "`{key}` is queued for after {polls} polls");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn kept_locks_are_renewed_while_others_are_waited_for() {
    let (client, other) = two_processes();
    for renewal in [Renewal::Automatic, Renewal::Manual] {
        let held = other.mutex("b").lock().await.unwrap();
        let all = client
            .all(["a", "b"])
            .with_ttl(secs(5))
            .with_renewal(renewal);
        let waiting = tokio::spawn(async move { all.lock().await });
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!is_free(&other, "a").await, "{renewal:?}");
        }
        held.release().await.unwrap();
        let all = waiting.await.unwrap().unwrap();
        all.renew().await.unwrap();
        assert!(all.is_held() && all.remaining() > Duration::from_secs(4));
        let earliest = all.leases().iter().map(LeaseInfo::deadline).min();
        assert_eq!(Some(all.deadline()), earliest);
    }
}

#[tokio::test(start_paused = true)]
async fn kept_lock_that_is_lost_is_requested_again() {
    let (client, other) = two_processes();
    let held = other.mutex("b").lock().await.unwrap();
    let all = client.all(["a", "b"]);
    let waiting = tokio::spawn(async move { all.lock().await });
    for _ in 0..2 {
        settle().await;
        let a = other.inspect("a").await.unwrap().holders[0].clone();
        other.revoke(&a, Revocation::Immediate).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!is_free(&other, "a").await, "it was acquired again");
    }
    held.release().await.unwrap();
    let all = waiting.await.unwrap().unwrap();
    assert!(all.is_held());
}

#[tokio::test(start_paused = true)]
async fn locks_that_are_lost_three_times_end_the_wait() {
    let (client, other) = two_processes();
    let held = other.mutex("b").lock().await.unwrap();
    let all = client.all(["a", "b"]);
    let waiting = tokio::spawn(async move { all.lock().await });
    for _ in 0..3 {
        settle().await;
        let a = other.inspect("a").await.unwrap().holders[0].clone();
        other.revoke(&a, Revocation::Immediate).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("`a`"), "{error}");
    assert!(is_free(&other, "a").await);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn first_loss_is_reported_with_its_key_and_cancels_the_work() {
    let (client, other) = two_processes();
    let all = client.all(["a", "b", "c"]);
    let guard = all.lock().await.unwrap();
    let info = guard.info();
    let work = tokio::spawn(guard.run_with(|_| std::future::pending::<()>()));
    settle().await;
    let b = other.inspect("b").await.unwrap().holders[0].clone();
    other.revoke(&b, Revocation::Immediate).await.unwrap();
    let error = work.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("`b`"), "{error}");
    let (key, reason) = info.lost().await;
    assert_eq!((key.as_str(), reason), (Some("b"), LossReason::Replaced));
    assert_eq!(info.loss(), Some((key, reason)));
    assert!(!info.is_held() && info.remaining().is_zero());
    settle().await;
    assert!(is_free(&other, "a").await && is_free(&other, "c").await);
}

#[tokio::test(start_paused = true)]
async fn dropped_guard_frees_every_key() {
    let (client, other) = two_processes();
    drop(client.all(["a", "b"]).lock().await.unwrap());
    settle().await;
    assert!(is_free(&other, "a").await && is_free(&other, "b").await);
}

#[tokio::test(start_paused = true)]
async fn callers_in_any_order_all_finish() {
    let (client, other) = two_processes();
    let names = ["a", "b", "c", "d", "e"];
    let inside = std::sync::Arc::new([const { std::sync::atomic::AtomicU32::new(0) }; 5]);
    let callers = (0..60_usize).map(|n| {
        let client = if n % 2 == 0 { &client } else { &other }.clone();
        let inside = inside.clone();
        tokio::spawn(async move {
            for round in 0..5 {
                // Different sets of keys in different orders.
                let at = |step: usize| (n * 7 + round * 3 + step * (1 + n % 4)) % 5;
                let wanted: Vec<_> = (0..2 + n % 3).map(at).collect();
                let mut distinct = wanted.clone();
                distinct.sort_unstable();
                distinct.dedup();
                let all = client.all(wanted.iter().map(|at| names[*at]));
                let all = match n % 5 {
                    // Single locks in key order, and time limits, take part.
                    0 => match all.lock_timeout(Duration::from_millis(20)).await.unwrap() {
                        Some(guard) => guard,
                        None => continue,
                    },
                    _ => all.lock().await.unwrap(),
                };
                for at in &distinct {
                    assert_eq!(inside[*at].fetch_add(1, SeqCst), 0, "two holders");
                }
                tokio::time::sleep(Duration::from_millis(n as u64 % 7)).await;
                for at in &distinct {
                    inside[*at].fetch_sub(1, SeqCst);
                }
                if n % 3 == 0 {
                    drop(all);
                } else {
                    all.release().await.unwrap();
                }
            }
        })
    });
    let finished = join_all(callers.collect::<Vec<_>>());
    // The clock is paused: only a hang reaches the limit.
    let finished = tokio::time::timeout(Duration::from_secs(3600), finished);
    for caller in finished.await.expect("callers wait for each other") {
        caller.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn free_keys_are_requested_in_one_step() {
    let (client, watched, _) = spied();
    let names: Vec<_> = (0..8).map(|n| format!("key/{n}")).collect();
    watched.acquisitions_hang.store(true, SeqCst);
    let all = client.all(&names);
    let mut waiting = Box::pin(all.lock());
    assert!((&mut waiting).now_or_never().is_none());
    assert_eq!(
        watched.tries.load(SeqCst),
        names.len(),
        "a request waits for the answer to another"
    );
}

#[tokio::test(start_paused = true)]
async fn last_key_is_waited_for_without_an_attempt_before() {
    let (client, watched, _) = spied();
    drop(client.all(["a"]).lock().await.unwrap());
    assert_eq!(watched.tries.load(SeqCst), 0);
    assert_eq!(watched.acquires.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_the_wait_and_frees_the_keys() {
    let (client, other) = two_processes();
    let _held = other.mutex("b").lock().await.unwrap();
    let all = client.all(["a", "b"]);
    let waiting = tokio::spawn(async move { all.lock().await });
    settle().await;
    client.close().await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(is_free(&other, "a").await);
}

#[tokio::test(start_paused = true)]
async fn waiter_for_a_local_task_holds_up_no_reader() {
    let (client, _) = simulated();
    let held = client.mutex("item/1").lock().await.unwrap();
    let waiter = client.all(["item/1"]).with_shared(["config"]);
    let mut waiting = Box::pin(waiter.lock());
    assert!((&mut waiting).now_or_never().is_none());
    let config = client.rwlock("config");
    assert!(
        config.read().now_or_never().is_some(),
        "a reader is held up by one that waits for another key"
    );
    let all = client.all(["item/2"]).with_shared(["config"]);
    assert!(all.lock().now_or_never().is_some());
    held.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn attempts_in_a_loop_do_not_refuse_each_other() {
    let backend = Spy::new(MemoryBackend::new());
    let watched = Arc::clone(&backend.watched);
    watched.unordered.store(true, SeqCst);
    watched.releases_yield.store(3, SeqCst);
    let client = LockClient::new(backend);
    let all = client.all(["a", "b", "c"]);
    let held = client.mutex("b").lock().await.unwrap();
    assert!(all.try_lock().await.unwrap().is_none());
    drop(held);
    assert!(
        all.try_lock().await.unwrap().is_some(),
        "refused by what an earlier attempt of this client releases"
    );
}

#[tokio::test(start_paused = true)]
async fn error_of_one_key_gives_back_the_others() {
    let failures = [
        Some(ErrorKind::Denied),
        Some(ErrorKind::Unavailable),
        Some(ErrorKind::Indeterminate),
        None,
    ];
    for (failing, kind) in ["a", "b", "c"]
        .iter()
        .flat_map(|key| failures.map(|kind| (*key, kind)))
    {
        let (client, watched, _) = spied();
        *watched.failing.lock().unwrap() = Some((failing, kind));
        let all = client.all(["a", "b", "c"]);
        let attempt = all.try_lock().await.map(|_| ()).unwrap_err();
        let wait = all.lock().await.map(|_| ()).unwrap_err();
        let limited = all
            .lock_timeout(Duration::from_secs(3))
            .await
            .map(|_| ())
            .unwrap_err();
        if let Some(kind) = kind {
            assert_eq!(
                [attempt.kind(), wait.kind(), limited.kind()],
                [kind, kind, kind]
            );
        }
        settle().await;
        *watched.failing.lock().unwrap() = None;
        for key in ["a", "b", "c"] {
            let free = client.mutex(key).lock().now_or_never();
            assert!(free.is_some(), "{key} after {kind:?} of {failing}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn draining_ends_the_wait_and_frees_the_keys() {
    let (client, other) = two_processes();
    let _held = other.mutex("b").lock().await.unwrap();
    let all = client.all(["a", "b"]);
    let waiting = tokio::spawn(async move { all.lock().await });
    settle().await;
    let drained = tokio::time::timeout(Duration::from_secs(3600), client.drain()).await;
    drained.expect("a kept lock is not drained");
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(is_free(&other, "a").await);
}

#[tokio::test(start_paused = true)]
async fn failed_release_of_one_key_does_not_hide_a_loss() {
    let (client, watched, _) = spied();
    *watched.failing_release.lock().unwrap() = Some("a");
    let guard = client.all(["a", "b"]).lock().await.unwrap();
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    *watched.failing_release.lock().unwrap() = None;
    let guard = client.all(["a", "b"]).lock().await.unwrap();
    *watched.failing_release.lock().unwrap() = Some("a");
    let b = client.inspect("b").await.unwrap().holders[0].clone();
    client.revoke(&b, Revocation::Immediate).await.unwrap();
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("`b`"), "{error}");
}

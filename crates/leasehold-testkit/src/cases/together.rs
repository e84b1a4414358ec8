//! Several locks that are acquired together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use leasehold_core::{LockClient, LockKey};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{at_the_latest, client, key, lifetime, must, must_grant, poll_times},
};

/// Checks that `all` holds all locks or none: a refusal, the time limit and a dropped future keep
/// no part. While it waits for a key, it holds no larger one. 16 tasks in two clients that request
/// random sets in both orders therefore never wait for each other, and all of them are granted.
pub async fn all_takes_all_or_nothing_and_never_deadlocks(fixture: &dyn BackendFixture) {
    let (one, other) = (client(fixture).await, client(fixture).await);
    let mut keys: Vec<_> = ["a", "b", "c", "d", "e"]
        .iter()
        .map(|name| key(fixture, &format!("all_{name}")))
        .collect();
    keys.sort();
    let [a, b, c] = [&keys[0], &keys[1], &keys[2]];
    let all = one.all([c, a, b]);

    let held = must(other.mutex(b).lock().await, "a free lock is granted");
    assert!(
        must(all.try_lock().await, "an attempt is answered").is_none(),
        "an attempt for several keys was granted, although one is held"
    );
    all_free(fixture, &other, &[a, c], "after a refused attempt").await;

    let limit = fixture.ttl().as_duration() / 4;
    assert!(
        must(all.lock_timeout(limit).await, "contention is no error").is_none(),
        "a wait for several keys was granted, although one is held"
    );
    all_free(fixture, &other, &[a, c], "after the time limit").await;

    for polls in 1..8 {
        let mut waiting = Box::pin(all.lock());
        assert!(
            poll_times(&mut waiting, polls).await.is_none(),
            "a wait for several keys was granted, although one is held"
        );
        drop(waiting);
        all_free(fixture, &other, &[a, c], "after a dropped wait").await;
    }

    let waiting = tokio::spawn({
        let all = all.clone();
        async move { all.lock().await }
    });
    // The waiter keeps the smaller key and releases the larger one.
    let mut waited = Duration::ZERO;
    while must(other.mutex(a).try_lock().await, "an attempt is answered").is_some() {
        assert!(
            waited < at_the_latest(fixture, fixture.ttl().as_duration()),
            "a waiter does not hold the smaller key"
        );
        tokio::time::sleep(limit / 10).await;
        waited += limit / 10;
    }
    all_free(fixture, &other, &[c], "while a smaller key is waited for").await;
    must(held.release().await, "a release is answered");
    let Ok(granted) = waiting.await else {
        panic!("a waiter for several keys failed")
    };
    let guard = must(granted, "a waiter for several keys is granted in the end");
    assert!(
        guard.is_held() && guard.leases().len() == 3,
        "a guard without all of its leases"
    );
    for key in [a, b, c] {
        let again = must(other.mutex(key).try_lock().await, "an attempt is answered");
        assert!(again.is_none(), "a key of a guard is not held");
    }
    must(guard.release().await, "a release is answered");
    all_free(fixture, &other, &[a, b, c], "after the release").await;

    crowd(&one, &other, &keys).await;
}

/// Lets 16 tasks acquire random sets of the keys.
async fn crowd(one: &LockClient, other: &LockClient, keys: &[LockKey]) {
    const TASKS: usize = 16;
    let inside: Arc<Vec<AtomicU32>> = Arc::new(keys.iter().map(|_| AtomicU32::new(0)).collect());
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let client = if task % 2 == 0 { one } else { other }.clone();
            let (keys, inside) = (keys.to_vec(), Arc::clone(&inside));
            tokio::spawn(async move {
                // Two or three keys, in a rising or a falling order.
                let mut set: Vec<_> = (0..2 + task / 2 % 2)
                    .map(|step| (task * 3 + step * (1 + task % 4)) % keys.len())
                    .collect();
                set.sort_unstable();
                if task % 3 == 0 {
                    set.reverse();
                }
                let all = client.all(set.iter().map(|at| &keys[*at]));
                let guard = must(all.lock().await, "a waiter is granted in the end");
                for at in &set {
                    let before = inside[*at].fetch_add(1, Ordering::AcqRel);
                    assert_eq!(before, 0, "two guards have one key");
                }
                tokio::task::yield_now().await;
                for at in &set {
                    inside[*at].fetch_sub(1, Ordering::AcqRel);
                }
                must(guard.release().await, "a release is answered");
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.is_ok(), "a task failed");
    }
}

/// Checks that readers of `all` share their key with others, and that its writers do not.
pub async fn all_shares_what_it_only_reads(fixture: &dyn BackendFixture) {
    let (one, other) = (client(fixture).await, client(fixture).await);
    let third = client(fixture).await;
    let (written, read) = (key(fixture, "all_written"), key(fixture, "all_read"));
    let guard = must(
        one.all([&written]).with_shared([&read]).lock().await,
        "free locks are granted",
    );
    let reader = must_grant(
        other.rwlock(&read).try_read().await,
        "a reader joins the readers",
    );
    let writer = must(
        third.rwlock(&read).try_write().await,
        "an attempt is answered",
    );
    assert!(writer.is_none(), "a writer joined readers");
    let second = must(
        other.rwlock(&written).try_read().await,
        "an attempt is answered",
    );
    assert!(second.is_none(), "a reader joined a writer");
    must(guard.release().await, "a release is answered");
    must(reader.release().await, "a release is answered");
    all_free(fixture, &other, &[&written, &read], "after the release").await;
}

/// Checks that each key becomes free soon. Releases in the background have no other end.
async fn all_free(
    fixture: &dyn BackendFixture,
    client: &LockClient,
    keys: &[&LockKey],
    when: &str,
) {
    let soon = at_the_latest(fixture, lifetime(fixture) / 4);
    for key in keys {
        let mut waited = Duration::ZERO;
        let guard = loop {
            let attempt = client.mutex(*key).try_lock().await;
            if let Some(guard) = must(attempt, "an attempt is answered") {
                break guard;
            }
            assert!(waited < soon, "{when} a part is still held");
            tokio::time::sleep(soon / 100).await;
            waited += soon / 100;
        };
        must(guard.release().await, "a release is answered");
    }
}

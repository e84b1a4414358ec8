//! Guards: their accessors, and the effect of dropping them.

mod support;

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Clock, ErrorKind, LockClient, LossReason, Released, Renewal, Revocation, TestClock, Ttl,
};
use leasehold_local::MemoryBackend;
use support::{secs, settle, simulated};

#[tokio::test(start_paused = true)]
async fn guard_reports_key_token_and_deadline() {
    let (client, clock) = simulated();
    let guard = client.mutex("a").with_ttl(secs(10)).lock().await.unwrap();
    assert_eq!(guard.key().as_bytes(), b"a");
    assert!(guard.fencing_token().is_some());
    assert_eq!(
        guard.deadline().remaining(clock.now()),
        Duration::from_secs(10)
    );
    assert_eq!(guard.remaining(), Duration::from_secs(10));
    assert!(guard.is_held());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[tokio::test(start_paused = true)]
async fn an_automatic_lease_is_renewed_for_as_long_as_the_guard_lives() {
    let (client, _) = simulated();
    let guard = client.mutex("a").with_ttl(secs(3)).lock().await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(guard.is_held());
    assert!(client.mutex("a").try_lock().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_manual_lease_ends_at_its_deadline_and_is_released() {
    let (client, _) = simulated();
    let guard = client
        .mutex("a")
        .with_ttl(secs(3))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    guard.renew().await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_990)).await;
    assert!(guard.is_held());
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!guard.is_held());
    assert_eq!(guard.loss(), Some(LossReason::Expired));
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    let next = client.mutex("a").try_lock().await.unwrap().unwrap();
    assert!(next.fencing_token() > guard.fencing_token());
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
    assert!(next.is_held());
}

#[tokio::test(start_paused = true)]
async fn lost_completes_at_the_deadline_and_not_before() {
    let (client, clock) = simulated();
    let guard = client
        .mutex("a")
        .with_ttl(secs(7))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    let token = guard.cancellation_token();
    let deadline = guard.deadline();
    assert_eq!(guard.lost().await, LossReason::Expired);
    let late = clock.now().since(deadline.moment());
    assert!(
        deadline.is_past(clock.now()),
        "notified before the deadline"
    );
    assert!(late <= Duration::from_millis(50), "notified {late:?} late");
    token.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn lost_never_completes_after_a_release() {
    let (client, _) = simulated();
    let guard = client.mutex("a").with_ttl(secs(1)).lock().await.unwrap();
    let view = guard.info();
    let token = guard.cancellation_token();
    guard.release().await.unwrap();
    assert!(!view.is_held());
    assert_eq!(view.loss(), None);
    assert!(
        tokio::time::timeout(Duration::from_secs(60), view.lost())
            .await
            .is_err()
    );
    assert!(!token.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_suspend_counts() {
    let (client, clock) = simulated();
    let guard = client.mutex("a").with_ttl(secs(30)).lock().await.unwrap();
    let view = guard.info();
    let notified = tokio::spawn(async move { view.lost().await });
    clock.suspend(Duration::from_secs(31));
    // No timer has fired yet, but the clock has advanced.
    assert!(!guard.is_held());
    let woken = clock.now();
    assert_eq!(notified.await.unwrap(), LossReason::Expired);
    assert!(
        clock.now().since(woken) <= Duration::from_secs(1),
        "timers look at the clock at least each second"
    );
}

#[tokio::test(start_paused = true)]
async fn loss_is_reported_when_the_backend_detects_it_first() {
    let (client, _) = simulated();
    let guard = client.mutex("a").lock().await.unwrap();
    let waiter = tokio::spawn({
        let client = client.clone();
        async move { client.mutex("a").lock().await.unwrap().fencing_token() }
    });
    tokio::task::yield_now().await;
    let holder = client.inspect("a").await.unwrap().holders.remove(0);
    client.revoke(&holder, Revocation::Immediate).await.unwrap();
    assert_eq!(guard.lost().await, LossReason::Replaced);
    assert!(
        waiter.await.unwrap() > guard.fencing_token(),
        "the next local waiter starts at once"
    );
}

#[tokio::test]
async fn dropping_releases_and_the_next_try_sees_it() {
    let client = LockClient::new(MemoryBackend::new());
    for _ in 0..1_000 {
        drop(client.mutex("a").try_lock().await.unwrap().unwrap());
    }
}

#[test]
fn drop_without_runtime_in_shutdown_or_in_panic_never_panics() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let client = LockClient::new(MemoryBackend::new());
    let lock = |name: &'static str| {
        let client = client.clone();
        async move { client.mutex(name).lock().await.unwrap() }
    };

    let guard = runtime.block_on(lock("outside"));
    std::thread::spawn(move || drop(guard)).join().unwrap();
    drop(runtime.block_on(async {
        client
            .mutex("outside")
            .lock_timeout(Duration::from_secs(10))
            .await
            .unwrap()
            .unwrap()
    }));

    let guard = runtime.block_on(lock("panic"));
    let panicked = runtime.block_on(async move {
        tokio::spawn(async move { panic!("with {:?}", guard.key()) }).await
    });
    assert!(panicked.unwrap_err().is_panic());
    drop(runtime.block_on(async {
        client
            .mutex("panic")
            .lock_timeout(Duration::from_secs(10))
            .await
            .unwrap()
            .unwrap()
    }));

    let inside = runtime.block_on(lock("shutdown"));
    runtime.spawn(async move {
        let _guard = inside;
        std::future::pending::<()>().await;
    });
    let after = runtime.block_on(lock("after"));
    drop(runtime);
    drop(after);
}

#[test]
fn a_client_is_bound_to_its_runtime() {
    static CLIENT: std::sync::LazyLock<LockClient> =
        std::sync::LazyLock::new(|| LockClient::new(MemoryBackend::new()));
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    first.block_on(async {
        CLIENT
            .mutex("a")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap()
    });
    let error = runtime().block_on(async { CLIENT.mutex("a").lock().await.unwrap_err() });
    assert_eq!(error.kind(), ErrorKind::WrongRuntime);
    drop(first);
    let error = runtime().block_on(async { CLIENT.mutex("a").lock().await.unwrap_err() });
    assert_eq!(error.kind(), ErrorKind::WrongRuntime);
}

/// A client with a connection is different: see the tests of `leasehold-redis`.
#[test]
fn in_process_client_may_be_used_on_another_runtime() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let client = runtime().block_on(async { LockClient::new(MemoryBackend::new()) });
    runtime().block_on(async {
        client
            .mutex("a")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap()
    });
}

#[tokio::test]
async fn the_clock_and_the_label_are_the_users() {
    let clock = Arc::new(TestClock::new());
    let client = LockClient::builder(MemoryBackend::new())
        .with_label("me")
        .with_ttl(Ttl::from_secs(5).unwrap());
    let client = client.with_clock(clock).build();
    let guard = client.mutex("a").with_label("you").lock().await.unwrap();
    assert_eq!(guard.ttl(), secs(5));
    assert_eq!(client.inspect("a").await.unwrap().holders[0].label, "you");
}

#[test]
fn memory_lock_is_released_when_its_runtime_has_ended() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let backend = Arc::new(MemoryBackend::new());
    let lock = |runtime: &tokio::runtime::Runtime| {
        let client = LockClient::new(Arc::clone(&backend));
        runtime.block_on(async { client.mutex("a").try_lock().await.unwrap() })
    };
    let first = runtime();
    let guard = lock(&first).unwrap();
    drop(first);
    drop(guard);
    drop(lock(&runtime()).expect("it was released"));
}

#[tokio::test(start_paused = true)]
async fn cancellation_tokens_leave_no_task_behind() {
    let (client, _) = simulated();
    let guard = client
        .mutex("a")
        .with_ttl(secs(7))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    settle().await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for _ in 0..1_000 {
        drop(guard.cancellation_token());
    }
    let (one, other) = (
        guard.cancellation_token(),
        guard.info().cancellation_token(),
    );
    settle().await;
    assert_eq!(tasks(), before);
    one.cancel();
    assert!(!other.is_cancelled(), "each has its own");
    other.cancelled().await;
    assert!(guard.info().cancellation_token().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_view_outlives_the_connection_and_does_not_keep_it() {
    for lose in [false, true] {
        let clock = Arc::new(TestClock::new());
        let backend = Arc::new(MemoryBackend::with_clock(clock.clone()));
        let connection = Arc::downgrade(&backend);
        let client = LockClient::builder(backend)
            .with_clock(clock.clone())
            .build();
        let guard = client
            .mutex("a")
            .with_ttl(secs(7))
            .with_renewal(Renewal::Manual)
            .lock()
            .await
            .unwrap();
        let (view, token, deadline) = (guard.info(), guard.cancellation_token(), guard.deadline());
        let (notified, fencing) = (
            tokio::spawn({
                let view = view.clone();
                async move { view.lost().await }
            }),
            guard.fencing_token(),
        );
        settle().await;
        if lose {
            assert_eq!(view.lost().await, LossReason::Expired);
            drop(guard);
        } else {
            guard.release().await.unwrap();
        }
        drop(client);
        settle().await;
        assert!(connection.upgrade().is_none(), "lost: {lose}");
        assert_eq!(
            (view.key().as_str(), view.ttl(), view.fencing_token()),
            (Some("a"), secs(7), fencing)
        );
        assert_eq!(
            (view.is_held(), view.remaining(), view.deadline()),
            (false, Duration::ZERO, deadline)
        );
        assert_eq!(
            (view.loss(), token.is_cancelled()),
            (lose.then_some(LossReason::Expired), lose)
        );
        assert_eq!(
            (
                notified.is_finished(),
                view.cancellation_token().is_cancelled()
            ),
            (lose, lose)
        );
        notified.abort();
    }
}

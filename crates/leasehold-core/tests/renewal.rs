//! The renewal task: it renews in time, retries until the deadline, and stops at a release.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Clock, Deadline, ErrorKind, LockClient, LockGuard, LossReason, Renewal, Revocation, TestClock,
    Timestamp, Ttl, backend::SessionId,
};
use support::{secs, settle, spied};
use tokio::{runtime::Handle, time::timeout};

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// The number of locks taken at once.
async fn locked(client: &LockClient, count: usize, ttl: Ttl) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for number in 0..count {
        guards.push(
            client
                .mutex(format!("{number}"))
                .with_ttl(ttl)
                .lock()
                .await
                .unwrap(),
        );
    }
    guards
}

#[tokio::test(start_paused = true)]
async fn it_renews_at_a_third_of_the_ttl_at_the_latest() {
    let (client, watched, clock) = spied();
    let start = clock.now();
    let _guard = client.mutex("a").with_ttl(secs(30)).lock().await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let renewals = watched.renewals.lock().unwrap();
    assert!(
        (30..=51).contains(&renewals.len()),
        "{} in ten TTLs",
        renewals.len()
    );
    let mut last = start;
    for &renewal in &*renewals {
        assert!(renewal.since(last) <= Duration::from_millis(10_050));
        last = renewal;
    }
}

#[tokio::test(start_paused = true)]
async fn failed_renewal_is_no_loss_and_is_retried_until_deadline() {
    let (client, watched, clock) = spied();
    let guard = client.mutex("a").with_ttl(secs(30)).lock().await.unwrap();
    watched.renewals_fail.store(true, SeqCst);
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(guard.is_held());
    let tries = watched.renewals.lock().unwrap().len();
    assert!(tries > 10, "{tries} tries");
    watched.renewals_fail.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(guard.is_held(), "it recovered");

    watched.renewals_fail.store(true, SeqCst);
    let local = tokio::spawn({
        let client = client.clone();
        async move { client.mutex("a").lock().await.unwrap().fencing_token() }
    });
    assert_eq!(guard.lost().await, LossReason::Expired);
    let deadline = guard.deadline();
    assert!(clock.now().since(deadline.moment()) < Duration::from_millis(50));
    assert!(
        local.await.unwrap() > guard.fencing_token(),
        "who waits in the process is not blocked by a dead guard"
    );
}

#[tokio::test(start_paused = true)]
async fn renewal_task_notices_an_expiry_at_the_deadline() {
    for session in [None, Some(SessionId::new())] {
        let (client, watched, clock) = spied();
        *watched.session.lock().unwrap() = session;
        watched.renewals_fail.store(true, SeqCst);
        for _ in 0..5 {
            let guard = client.mutex("a").with_ttl(secs(30)).lock().await.unwrap();
            // Nobody awaits `lost`, so only the renewal task can notice the end.
            guard.cancellation_token().cancelled().await;
            let late = clock.now().since(guard.deadline().moment());
            assert!(late < Duration::from_millis(50), "{late:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_renewed_after_a_release() {
    let (client, watched, _) = spied();
    for release in [true, false] {
        let guard = client.mutex("a").with_ttl(secs(3)).lock().await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        if release {
            guard.release().await.unwrap();
        } else {
            drop(guard);
        }
        settle().await;
        let renewals = watched.renewals.lock().unwrap().len();
        assert!(renewals > 0);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(watched.renewals.lock().unwrap().len(), renewals);
    }
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_manual_guard_is_released_at_its_deadline() {
    let (client, _, clock) = spied();
    let guard = client
        .mutex("a")
        .with_ttl(secs(5))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    std::mem::forget(guard);
    let start = clock.now();
    let next = client.mutex("a").lock().await.unwrap();
    let waited = clock.now().since(start);
    assert!(
        (Duration::from_secs(5)..Duration::from_millis(5_050)).contains(&waited),
        "{waited:?}"
    );
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn leases_of_one_session_are_renewed_together() {
    let (client, watched, _) = spied();
    *watched.session.lock().unwrap() = Some(SessionId::new());
    let _guards = locked(&client, 100, secs(9)).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let renewals = watched.renewals.lock().unwrap().len();
    assert!(
        (1..=6).contains(&renewals),
        "{renewals} renewals for 100 leases"
    );
}

#[tokio::test(start_paused = true)]
async fn leases_taken_together_are_not_renewed_together() {
    let (client, watched, clock) = spied();
    let guards = locked(&client, 10_000, secs(30)).await;
    let start = clock.now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(guards.iter().all(LockGuard::is_held));
    let mut per_100_ms = BTreeMap::<u128, usize>::new();
    for renewal in &*watched.renewals.lock().unwrap() {
        *per_100_ms
            .entry(renewal.since(start).as_millis() / 100)
            .or_default() += 1;
    }
    let most = per_100_ms.values().max().unwrap();
    assert!(*most < 1_000, "{most} renewals within 100 ms");
}

#[tokio::test(start_paused = true)]
async fn what_is_due_soon_is_renewed_along_with_what_is_due() {
    let (client, watched, _clock) = spied();
    let guards = locked(&client, 1_000, secs(30)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(guards.iter().all(LockGuard::is_held));
    let renewals = watched.renewals.lock().unwrap().clone();
    let moments: BTreeSet<_> = renewals.iter().collect();
    assert!(
        moments.len() * 10 < renewals.len(),
        "{} renewals at {} moments",
        renewals.len(),
        moments.len()
    );
}

#[tokio::test(start_paused = true)]
async fn renewal_task_ends_with_its_client() {
    let (client, watched, _) = spied();
    let before = alive_tasks();
    drop(client.mutex("a").lock().await.unwrap());
    settle().await;
    assert_eq!(alive_tasks(), before + 1, "the renewal task");
    let weak = Arc::downgrade(&watched);
    drop((client, watched));
    settle().await;
    assert!(weak.upgrade().is_none(), "nothing keeps the backend alive");
    assert_eq!(alive_tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn close_and_drain_end_the_renewal_task() {
    for drains in [false, true] {
        let (client, _watched, clock) = spied();
        let (before, begun) = (alive_tasks(), clock.now());
        drop(client.mutex("a").lock().await.unwrap());
        if drains {
            // A drain that waits for the task would not end.
            timeout(Duration::from_secs(3600), client.drain())
                .await
                .unwrap();
        }
        client.close().await.unwrap();
        assert_eq!(clock.now(), begun, "nothing is waited for");
        settle().await;
        assert_eq!(alive_tasks(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_answered_after_the_deadline_is_an_expiry() {
    let (client, watched, clock) = spied();
    let guard = client
        .mutex("a")
        .with_ttl(secs(10))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    *watched.suspended.lock().unwrap() = Some((clock, Duration::from_secs(11)));
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(guard.loss(), Some(LossReason::Expired));
}

#[tokio::test(start_paused = true)]
async fn eight_thousand_slow_renewals_lose_no_lock() {
    let (client, watched, _clock) = spied();
    *watched.round_trip.lock().unwrap() = Duration::from_millis(50);
    let guards = locked(&client, 8_000, secs(5)).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let held = guards.iter().filter(|guard| guard.is_held()).count();
    assert_eq!(held, guards.len());
}

#[tokio::test(start_paused = true)]
async fn a_short_lease_does_not_queue_behind_long_ones() {
    let (client, watched, _clock) = spied();
    *watched.round_trip.lock().unwrap() = Duration::from_secs(1);
    let long = locked(&client, 4_000, secs(60)).await;
    tokio::time::sleep(Duration::from_secs(13)).await;
    let short = client
        .mutex("short")
        .with_ttl(secs(3))
        .lock()
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(short.is_held());
    assert!(long.iter().all(LockGuard::is_held));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_sent_before_half_of_the_ttl_is_gone() {
    let (client, watched, clock) = spied();
    // No renewal is answered within a TTL.
    *watched.round_trip.lock().unwrap() = Duration::from_secs(3600);
    let start = clock.now();
    let _guards = locked(&client, 1_000, secs(10)).await;
    tokio::time::sleep(Duration::from_millis(9_990)).await;
    let renewals = watched.renewals.lock().unwrap();
    assert_eq!(renewals.len(), 1_000);
    let last = renewals.iter().max().unwrap().since(start);
    assert!(last <= Duration::from_millis(5_010), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_renewal_ends_no_other() {
    // The spy's locks share the renewals of a session, but not a deadline.
    for (session, locks) in [(None, 10), (Some(SessionId::new()), 1)] {
        let (client, watched, _clock) = spied();
        *watched.session.lock().unwrap() = session;
        let guards = locked(&client, locks, secs(10)).await;
        watched.panics.store(5, SeqCst);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(watched.panics.load(SeqCst), 0);
        assert!(guards.iter().all(LockGuard::is_held));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_manual_renewal_is_its_error() {
    let (client, watched, _clock) = spied();
    let guard = client
        .mutex("a")
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    watched.panics.store(1, SeqCst);
    let error = guard.renew().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.backend()),
        (ErrorKind::Indeterminate, Some("memory"))
    );
    assert!(error.message().contains("made to panic"), "{error}");
    guard.renew().await.unwrap();
}

/// Revokes the lock of this key gracefully.
async fn revoke(client: &LockClient, key: &str) {
    let holder = client.inspect(key).await.unwrap().holders.remove(0);
    client.revoke(&holder, Revocation::Graceful).await.unwrap();
}

/// Runs a test with paused time on a thread of its own. A thread that never ends fails it.
fn ends<Fut: Future<Output = ()>>(test: impl FnOnce() -> Fut + Send + 'static) {
    let (ended, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(test());
        ended.send(()).unwrap();
    });
    outcome
        .recv_timeout(Duration::from_secs(60))
        .expect("the test panicked or never ends");
}

#[test]
fn revoked_lock_with_a_slow_renewal_blocks_no_other_lock() {
    ends(|| async {
        let (client, watched, _clock) = spied();
        let guard = client.mutex("a").with_ttl(secs(10)).lock().await.unwrap();
        *watched.round_trip.lock().unwrap() = Duration::from_secs(3600);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(watched.renewals.lock().unwrap().len(), 1, "it is running");
        *watched.round_trip.lock().unwrap() = Duration::ZERO;
        revoke(&client, "a").await;
        assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Revoked);
        let other = client.mutex("b").with_ttl(secs(10)).lock().await.unwrap();
        assert_eq!(guard.lost().await, LossReason::Expired);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(other.is_held());
    });
}

#[test]
fn revoked_lock_among_many_blocks_no_other_lock() {
    ends(|| async {
        let (client, watched, _clock) = spied();
        *watched.round_trip.lock().unwrap() = Duration::from_millis(2);
        let mut guards = locked(&client, 1_000, secs(10)).await;
        let revoked = guards.remove(0);
        revoke(&client, "0").await;
        // Other locks are renewed shortly before the deadline of this one.
        assert_eq!(revoked.lost().await, LossReason::Expired);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(guards.iter().all(LockGuard::is_held));
    });
}

#[tokio::test(start_paused = true)]
async fn revoked_lock_of_a_session_ends_at_its_own_deadline() {
    let (client, watched, clock) = spied();
    *watched.session.lock().unwrap() = Some(SessionId::new());
    let kept = client
        .mutex("kept")
        .with_ttl(secs(10))
        .lock()
        .await
        .unwrap();
    for round in 0..5 {
        let mutex = client.mutex("revoked").with_ttl(secs(10));
        let guard = mutex.lock().await.unwrap();
        tokio::time::sleep(Duration::from_millis(700 * round)).await;
        revoke(&client, "revoked").await;
        let next = tokio::spawn(async move { drop(mutex.lock().await.unwrap()) });
        // Nobody awaits `lost`, so only the renewal task can notice the end.
        guard.cancellation_token().cancelled().await;
        let late = clock.now().since(guard.deadline().moment());
        assert!(late < Duration::from_millis(50), "{late:?}");
        assert_eq!(guard.loss(), Some(LossReason::Expired));
        next.await.unwrap();
    }
    assert!(kept.is_held());
}

#[tokio::test(start_paused = true)]
async fn session_with_a_revoked_lock_is_renewed_as_before() {
    let (client, watched, _clock) = spied();
    *watched.session.lock().unwrap() = Some(SessionId::new());
    let guards = locked(&client, 2, secs(10)).await;
    revoke(&client, "1").await;
    tokio::time::sleep(Duration::from_millis(9_800)).await;
    // The revoked lock is tried once. Otherwise there is at most one renewal in a fifth of a TTL.
    let renewals = watched.renewals.lock().unwrap().len();
    assert!(renewals <= 6, "{renewals} renewals within a TTL");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(guards[0].is_held() && !guards[1].is_held());
}

#[tokio::test(start_paused = true)]
async fn at_most_64_renewals_run_while_none_is_urgent() {
    let (client, watched, _clock) = spied();
    let round_trip = Duration::from_secs(1);
    *watched.round_trip.lock().unwrap() = round_trip;
    let guards = locked(&client, 800, secs(60)).await;
    // Before half of the TTL is gone, no renewal is urgent.
    tokio::time::sleep(Duration::from_secs(29)).await;
    let mut sent = watched.renewals.lock().unwrap().clone();
    sent.sort_unstable();
    assert!(sent.len() >= guards.len(), "{} renewals", sent.len());
    let running = |at: usize| {
        let earlier = sent[..=at].iter().rev();
        earlier
            .take_while(|earlier| sent[at].since(**earlier) < round_trip)
            .count()
    };
    assert_eq!((0..sent.len()).map(running).max(), Some(64));
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_the_answer_to_a_renewal() {
    for session in [None, Some(SessionId::new())] {
        let (client, watched, _clock) = spied();
        *watched.session.lock().unwrap() = session;
        *watched.round_trip.lock().unwrap() = Duration::from_secs(2);
        let _guard = client.mutex("a").with_ttl(secs(9)).lock().await.unwrap();
        while watched.renewals.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(watched.renewals_answered.load(SeqCst), 0, "it is running");
        client.close().await.unwrap();
        assert_eq!(watched.renewals_answered.load(SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_with_a_lost_lock_is_renewed_at_once() {
    let (client, watched, _clock) = spied();
    *watched.session.lock().unwrap() = Some(SessionId::new());
    let guards = locked(&client, 2, secs(30)).await;
    watched.renewals_lost.store(1, SeqCst);
    tokio::time::sleep(Duration::from_secs(29)).await;
    let losses: Vec<_> = guards.iter().filter_map(LockGuard::loss).collect();
    assert_eq!(losses, [LossReason::Replaced]);
    // The answer was about one lock only. The other one has no part of its TTL to lose.
    let renewals = watched.renewals.lock().unwrap();
    assert_eq!(renewals[0], renewals[1]);
}

#[tokio::test(start_paused = true)]
async fn a_reported_loss_is_noticed_before_any_renewal() {
    for session in [None, Some(SessionId::new())] {
        let (client, watched, clock) = spied();
        *watched.session.lock().unwrap() = session;
        let guard = client.mutex("a").lock().await.unwrap();
        let lost = guard.cancellation_token();
        let next = tokio::spawn({
            let client = client.clone();
            async move { client.mutex("a").lock().await.unwrap() }
        });
        settle().await;
        let (begun, holder) = (
            clock.now(),
            client.inspect("a").await.unwrap().holders.remove(0),
        );
        client.revoke(&holder, Revocation::Immediate).await.unwrap();
        lost.cancelled().await;
        assert!(next.await.unwrap().is_held());
        assert_eq!(clock.now(), begun, "nothing is waited for");
        assert!(watched.renewals.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_manual_lease_is_not_renewed_among_automatic_ones() {
    let (client, watched, clock) = spied();
    let manual = client.mutex("manual").with_renewal(Renewal::Manual);
    let manual = manual.with_ttl(secs(10)).lock().await.unwrap();
    let deadline = manual.deadline();
    let guards = locked(&client, 1_000, secs(10)).await;
    manual.cancellation_token().cancelled().await;
    assert_eq!(manual.deadline(), deadline);
    let late = clock.now().since(deadline.moment());
    assert!(late < Duration::from_millis(50), "{late:?}");
    assert!(watched.renewals.lock().unwrap().len() > guards.len());
}

#[tokio::test(start_paused = true)]
async fn a_short_lease_survives_renewals_that_fail_until_late() {
    let (client, watched, _clock) = spied();
    let guard = client.mutex("a").with_ttl(secs(2)).lock().await.unwrap();
    watched.renewals_fail.store(true, SeqCst);
    tokio::time::sleep(Duration::from_millis(1_700)).await;
    watched.renewals_fail.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_suspend_delays_a_renewal_by_a_tenth_of_the_ttl_at_most() {
    for session in [None, Some(SessionId::new())] {
        let (client, watched, clock) = spied();
        *watched.session.lock().unwrap() = session;
        let guard = client.mutex("a").with_ttl(secs(1)).lock().await.unwrap();
        settle().await;
        clock.suspend(Duration::from_millis(850));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(guard.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn a_manual_lease_in_a_session_has_a_deadline_of_its_own() {
    let (client, watched, clock) = spied();
    *watched.session.lock().unwrap() = Some(SessionId::new());
    let mutex = client.mutex("a").with_renewal(Renewal::Manual);
    let guard = mutex.with_ttl(secs(5)).lock().await.unwrap();
    // The locks of the session that are renewed automatically keep it alive.
    let moved = Deadline::at(clock.now() + Duration::from_secs(3600));
    *watched.session_deadline.lock().unwrap() = Some(moved);
    assert_eq!(guard.remaining(), Duration::from_secs(5));
    tokio::time::sleep(Duration::from_secs(3)).await;
    guard.renew().await.unwrap();
    assert_eq!(guard.remaining(), Duration::from_secs(5));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(guard.is_held());
    *watched.suspended.lock().unwrap() = Some((clock, Duration::from_secs(3)));
    assert_eq!(guard.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(guard.loss(), Some(LossReason::Expired));
}

/// A clock that counts how often it is read.
#[derive(Debug)]
struct CountingClock {
    clock: TestClock,
    readings: AtomicUsize,
}

impl Clock for CountingClock {
    fn now(&self) -> Timestamp {
        self.readings.fetch_add(1, SeqCst);
        self.clock.now()
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_holds_nothing_sleeps() {
    let (client, _watched, _clock) = spied();
    let clock = Arc::new(CountingClock {
        clock: TestClock::new(),
        readings: AtomicUsize::new(0),
    });
    let client = LockClient::builder(Arc::clone(client.backend()))
        .with_clock(clock.clone())
        .build();
    drop(client.mutex("a").lock().await.unwrap());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let readings = clock.readings.load(SeqCst);
    assert!(readings > 0);
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    assert_eq!(clock.readings.load(SeqCst), readings);
}

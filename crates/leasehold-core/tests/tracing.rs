//! Tracing: waits, holds, renewals and releases at debug, losses and misuse at warn.

mod support;

use std::{
    io::Write,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::FutureExt;
use leasehold_core::{LockClient, LossReason, Renewal, Revocation, TestClock, backend::SessionId};
use leasehold_local::MemoryBackend;
use leasehold_testkit::subscribe;
use support::{flaky::Flaky, secs, settle, simulated, spied, two_processes};
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The name and fields of each span, in the order in which they end.
    fn spans(&self) -> Vec<String> {
        let text = self.text();
        let ended = text.lines().filter_map(|line| {
            line.split_once(" DEBUG ")?
                .1
                .split_once(": leasehold: close")
        });
        // Without the spans around it.
        ended
            .map(|(spans, _)| {
                spans
                    .rsplit_once("}:")
                    .map_or(spans, |(_, last)| last)
                    .to_owned()
            })
            .collect()
    }

    /// Records all events of this thread until the guard is dropped.
    fn record(&self) -> impl Sized + use<> {
        subscribe(
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_span_events(FmtSpan::CLOSE)
                .with_ansi(false)
                .with_writer(self.clone())
                .finish(),
        )
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn spans_have_key_backend_token_and_outcome() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    let guard = client
        .mutex("item/42")
        .with_ttl(secs(3))
        .lock()
        .await
        .unwrap();
    let token = guard.fencing_token().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    guard.write_record("value").await.unwrap();
    guard.release().await.unwrap();
    settle().await;
    let mut spans = log.spans();
    spans.dedup();
    let of = "backend=\"memory\" key=item/42";
    assert_eq!(
        spans,
        [
            format!("wait{{{of} mode=exclusive token={token} outcome=\"granted\"}}"),
            format!("renew{{{of} token={token} outcome=\"renewed\"}}"),
            format!("write_record{{{of} token={token} outcome=\"written\"}}"),
            format!("release{{{of} token={token} outcome=\"freed\"}}"),
            format!("hold{{{of} mode=exclusive token={token} outcome=\"released\"}}"),
        ]
    );
    assert!(!log.text().contains("WARN"), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn failures_are_traced_with_their_outcome() {
    let log = Log::default();
    let _recording = log.record();
    let (client, watched, _) = spied();
    let guard = client
        .mutex("a")
        .with_ttl(secs(3))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    assert!(client.mutex("a").try_lock().await.unwrap().is_none());
    assert!(
        client
            .mutex("a")
            .lock_timeout(Duration::from_millis(10))
            .await
            .unwrap()
            .is_none()
    );
    tokio::time::timeout(Duration::from_millis(10), client.mutex("a").lock())
        .await
        .unwrap_err();
    watched.renewals_fail.store(true, SeqCst);
    guard.renew().await.unwrap_err();
    guard.lost().await;
    drop(guard);
    settle().await;
    let ended = |span: &str| {
        let spans = log.spans();
        let named = spans
            .iter()
            .filter(|ended| ended.starts_with(&format!("{span}{{")));
        named
            .map(|ended| {
                ended
                    .split_once(" outcome=")
                    .unwrap()
                    .1
                    .trim_end_matches('}')
                    .to_owned()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ended("wait"),
        ["\"granted\"", "\"contended\"", "\"timed_out\"", "cancelled"]
    );
    assert_eq!(ended("renew"), ["unavailable"]);
    assert_eq!(
        ended("hold"),
        ["its deadline passed before a renewal succeeded"]
    );
    // A lost lock is released too, because the backend may not know of the loss yet.
    assert_eq!(ended("release"), ["\"already lost\""]);
}

#[tokio::test(start_paused = true)]
async fn release_of_an_unwanted_grant_is_traced() {
    let log = Log::default();
    let _recording = log.record();
    let (ours, theirs) = two_processes();
    let mutex = ours.mutex("a");
    let releases = || {
        log.spans()
            .into_iter()
            .filter(|span| span.starts_with("release{"))
            .collect::<Vec<_>>()
    };
    for round in 1..=100 {
        let held = theirs.mutex("a").lock().await.unwrap();
        let mut waiting = Box::pin(mutex.lock());
        assert!((&mut waiting).now_or_never().is_none());
        held.release().await.unwrap();
        // The lock is granted but not polled since. If the backend sees the cancellation first, it
        // releases the lock by itself.
        drop(waiting);
        settle().await;
        let released = releases();
        if released.len() > round {
            let given_back = released.last().unwrap();
            let of = "release{backend=\"memory\" key=a token=";
            assert!(
                given_back.starts_with(of) && given_back.ends_with("outcome=\"freed\"}"),
                "{released:#?}"
            );
            return;
        }
    }
    panic!("no release was traced: {:#?}", log.spans());
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_a_warning() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    let guard = client
        .mutex("a")
        .with_ttl(secs(3))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    guard.lost().await;
    settle().await;
    let text = log.text();
    let warnings: Vec<_> = text.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{text}");
    assert!(
        warnings[0].contains("lock lost") && warnings[0].contains("key=a"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn late_renewals_are_warned_of_before_a_loss() {
    for session in [None, Some(SessionId::new())] {
        let log = Log::default();
        let _recording = log.record();
        let (client, watched, _) = spied();
        *watched.session.lock().unwrap() = session;
        watched.renewals_fail.store(true, SeqCst);
        let guard = client.mutex("a").with_ttl(secs(8)).lock().await.unwrap();
        let other = client.mutex("b").with_ttl(secs(8)).lock().await.unwrap();
        tokio::join!(guard.lost(), other.lost());
        settle().await;
        let text = log.text();
        let warnings: Vec<_> = text.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 3, "{text}");
        assert!(
            warnings[0].contains("renewals are late") && warnings[0].contains("made to fail"),
            "{text}"
        );
        assert!(
            warnings[1].contains("lock lost") && warnings[2].contains("lock lost"),
            "{text}"
        );
    }
}

/// Returns the warnings of late renewals.
fn late_renewals(log: &Log) -> Vec<String> {
    let text = log.text();
    let late = text.lines().filter(|line| line.contains("WARN"));
    late.filter(|line| line.contains("renewals are late"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn late_renewals_are_warned_of_in_the_last_quarter_of_the_ttl() {
    for session in [None, Some(SessionId::new())] {
        let log = Log::default();
        let _recording = log.record();
        let (client, watched, _) = spied();
        *watched.session.lock().unwrap() = session;
        // No renewal is answered.
        *watched.round_trip.lock().unwrap() = Duration::from_secs(3600);
        let guard = client.mutex("a").with_ttl(secs(8)).lock().await.unwrap();
        let quarter = Duration::from_secs(2);
        tokio::time::sleep(guard.remaining() - quarter - Duration::from_millis(20)).await;
        assert_eq!(late_renewals(&log).len(), 0, "{}", log.text());
        tokio::time::sleep(Duration::from_millis(40)).await;
        let warnings = late_renewals(&log);
        assert_eq!(warnings.len(), 1, "{}", log.text());
        for field in ["locks=1", "first=a", "under_way=1", "waiting=0"] {
            assert!(warnings[0].contains(field), "{field}: {}", warnings[0]);
        }
        assert!(!warnings[0].contains("error="), "{}", warnings[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn late_leases_and_late_sessions_share_a_warning() {
    let log = Log::default();
    let _recording = log.record();
    let (client, watched, _) = spied();
    *watched.round_trip.lock().unwrap() = Duration::from_secs(3600);
    let mutex = |key| client.mutex(key).with_ttl(secs(8));
    let lease = mutex("lease").lock().await.unwrap();
    *watched.session.lock().unwrap() = Some(SessionId::new());
    let session = mutex("session").lock().await.unwrap();
    tokio::join!(lease.lost(), session.lost());
    let warnings = late_renewals(&log);
    assert_eq!(warnings.len(), 1, "{}", log.text());
    assert!(warnings[0].contains("locks=2"), "{}", warnings[0]);
}

#[tokio::test(start_paused = true)]
async fn late_renewals_are_warned_of_at_most_once_per_ttl() {
    let log = Log::default();
    let _recording = log.record();
    let (client, watched, _) = spied();
    *watched.round_trip.lock().unwrap() = Duration::from_secs(3600);
    let lock = async |key: &str| client.mutex(key).with_ttl(secs(8)).lock().await.unwrap();
    let first = lock("first").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let second = lock("second").await;
    // The second lock is late within a TTL of the first warning.
    tokio::join!(first.lost(), second.lost());
    assert_eq!(late_renewals(&log).len(), 1, "{}", log.text());
    lock("third").await.lost().await;
    let warnings = late_renewals(&log);
    assert_eq!(warnings.len(), 2, "{}", log.text());
    assert!(
        warnings[0].contains("first=first") && warnings[1].contains("first=third"),
        "{warnings:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_revocation_is_not_the_error_of_late_renewals() {
    let log = Log::default();
    let _recording = log.record();
    let (client, watched, _) = spied();
    *watched.round_trip.lock().unwrap() = Duration::from_secs(3600);
    let late = client
        .mutex("late")
        .with_ttl(secs(20))
        .lock()
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(watched.renewals.lock().unwrap().len(), 1, "it is running");
    *watched.round_trip.lock().unwrap() = Duration::ZERO;
    let revoked = client.mutex("revoked").with_ttl(secs(10)).lock().await;
    let holder = client.inspect("revoked").await.unwrap().holders.remove(0);
    client.revoke(&holder, Revocation::Graceful).await.unwrap();
    late.lost().await;
    assert!(log.text().contains("lock revoked"), "{}", log.text());
    let warnings = late_renewals(&log);
    assert_eq!(warnings.len(), 1, "{}", log.text());
    assert!(!warnings[0].contains("error="), "{}", warnings[0]);
    drop(revoked);
}

#[tokio::test(start_paused = true)]
async fn revocation_is_a_warning_and_no_late_renewal() {
    for session in [None, Some(SessionId::new())] {
        let log = Log::default();
        let _recording = log.record();
        let (client, watched, _) = spied();
        *watched.session.lock().unwrap() = session;
        let guard = client.mutex("a").with_ttl(secs(8)).lock().await.unwrap();
        let neighbour = client.mutex("b").with_ttl(secs(8)).lock().await.unwrap();
        let holders = client.inspect("a").await.unwrap().holders;
        client
            .revoke(&holders[0], Revocation::Graceful)
            .await
            .unwrap();
        assert_eq!(guard.lost().await, LossReason::Expired);
        settle().await;
        let text = log.text();
        let warnings: Vec<_> = text.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 2, "{text}");
        assert!(
            warnings[0].contains("lock revoked") && warnings[1].contains("lock lost"),
            "{text}"
        );
        assert!(neighbour.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn each_outage_of_a_watch_is_warned_of_once() {
    let log = Log::default();
    let _recording = log.record();
    let clock = Arc::new(TestClock::new());
    let backend = Flaky::new("flaky", clock.clone(), false);
    let client = LockClient::builder(Arc::clone(&backend))
        .with_clock(clock)
        .build();
    let guard = client.mutex("config").lock().await.unwrap();
    let mut watch = client.watch("config");
    for outage in 1..=2 {
        guard.write_record("value").await.unwrap();
        backend.down.store(true, SeqCst);
        tokio::time::timeout(Duration::from_secs(10), watch.next())
            .await
            .unwrap_err();
        let log = log.text();
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), outage, "{log}");
        assert!(warnings[outage - 1].contains("cannot read the record of a watch"));
        assert!(warnings[outage - 1].contains("key=config"), "{log}");
        backend.down.store(false, SeqCst);
        assert!(watch.next().await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn task_that_waits_for_itself_is_warned() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    tokio::spawn(async move {
        let _guard = client.mutex("a").with_ttl(secs(5)).lock().await.unwrap();
        let again = client.mutex("a").with_ttl(secs(5));
        assert!(
            again
                .lock_timeout(Duration::from_secs(4))
                .await
                .unwrap()
                .is_none()
        );
        assert!(
            again
                .lock_timeout(Duration::from_secs(6))
                .await
                .unwrap()
                .is_none()
        );
    })
    .await
    .unwrap();
    let text = log.text();
    assert_eq!(
        text.matches("LockClient::reentrant_owner").count(),
        1,
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn main_body_that_waits_for_itself_is_warned() {
    // This is not a task of the runtime, so it has no id.
    assert!(tokio::task::try_id().is_none());
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    let mutex = client.mutex("a").with_ttl(secs(5));
    let _guard = mutex.lock().await.unwrap();
    assert!(
        mutex
            .lock_timeout(Duration::from_secs(4))
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        mutex
            .lock_timeout(Duration::from_secs(6))
            .await
            .unwrap()
            .is_none()
    );
    let text = log.text();
    assert_eq!(
        text.matches("LockClient::reentrant_owner").count(),
        1,
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn reader_that_requests_the_write_lock_is_warned() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    let (lock, semaphore) = (
        client.rwlock("a").with_ttl(secs(5)),
        client.semaphore("a", 1).with_ttl(secs(5)),
    );
    let limit = Duration::from_secs(12);
    let guard = lock.read().await.unwrap();
    assert!(lock.write_timeout(limit).await.unwrap().is_none());
    let text = log.text();
    assert_eq!(
        text.matches("cannot be upgraded to a write lock").count(),
        1,
        "{text}"
    );
    drop(guard);
    let _permit = semaphore.acquire().await.unwrap();
    assert!(semaphore.acquire_timeout(limit).await.unwrap().is_none());
    assert_eq!(
        log.text()
            .matches("a task waits for a lock that it acquired itself")
            .count(),
        2,
        "{}",
        log.text()
    );
    // Waits of other tasks are not self-deadlocks.
    let another = semaphore.clone();
    assert!(
        tokio::spawn(async move { another.acquire_timeout(limit).await.unwrap().is_none() })
            .await
            .unwrap()
    );
    assert_eq!(
        log.text()
            .matches("a task waits for a lock that it acquired itself")
            .count(),
        2,
        "{}",
        log.text()
    );
}

/// Locks two keys one under the other, in tasks of their own that never meet.
async fn lock_in_turn(client: &LockClient, pairs: &[(&'static str, &'static str)]) {
    for (first, then) in pairs.iter().copied() {
        let client = client.clone();
        let task = tokio::spawn(async move {
            let _outer = client.mutex(first).lock().await.unwrap();
            let _inner = client.mutex(then).lock().await.unwrap();
        });
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn locks_in_different_orders_are_warned_of_once_per_pair() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    lock_in_turn(&client, &[("a", "b"), ("b", "c"), ("a", "c")]).await;
    assert!(!log.text().contains("WARN"), "{}", log.text());
    // Twice, and once through `b`.
    lock_in_turn(&client, &[("b", "a"), ("b", "a"), ("c", "a"), ("c", "a")]).await;
    let text = log.text();
    for pair in ["`a` is locked while `b`", "`a` is locked while `c`"] {
        assert_eq!(text.matches(pair).count(), 1, "{text}");
    }
    assert_eq!(text.matches("LockClient::all").count(), 2, "{text}");
}

#[tokio::test(start_paused = true)]
async fn single_locks_against_the_order_of_all_are_warned_of() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    for names in [["a", "b"], ["b", "a"]] {
        client
            .all(names)
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    assert!(!log.text().contains("WARN"), "{}", log.text());
    lock_in_turn(&client, &[("b", "a")]).await;
    let warnings = log.text().matches("`a` is locked while `b`").count();
    assert_eq!(warnings, 1, "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn locks_that_cannot_deadlock_are_not_warned_of() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    // One after the other, attempts that do not wait, and permits.
    for (first, then) in [("a", "b"), ("b", "a")] {
        drop(client.mutex(first).lock().await.unwrap());
        drop(client.mutex(then).lock().await.unwrap());
        let _outer = client.mutex(first).lock().await.unwrap();
        assert!(client.mutex(then).try_lock().await.unwrap().is_some());
        let _permit = client.semaphore(then, 1).acquire().await.unwrap();
    }
    assert!(!log.text().contains("WARN"), "{}", log.text());
}

/// The time of an acquisition must not grow with the number of locks that its task holds.
#[tokio::test(start_paused = true)]
async fn order_of_the_first_16_locks_of_a_task_is_checked() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    let task = tokio::spawn({
        let client = client.clone();
        async move {
            let mut held = Vec::new();
            for n in 0..17 {
                held.push(client.mutex(format!("k{n}")).lock().await.unwrap());
            }
            let _last = client.mutex("last").lock().await.unwrap();
        }
    });
    task.await.unwrap();
    lock_in_turn(&client, &[("last", "k16")]).await;
    assert!(!log.text().contains("WARN"), "{}", log.text());
    lock_in_turn(&client, &[("last", "k15")]).await;
    assert!(log.text().contains("`k15` is locked while `last`"));
}

#[tokio::test(start_paused = true)]
async fn warnings_of_the_order_can_be_switched_off() {
    let log = Log::default();
    let _recording = log.record();
    let client = LockClient::builder(MemoryBackend::new())
        .with_order_warnings(false)
        .build();
    lock_in_turn(&client, &[("a", "b"), ("b", "a")]).await;
    assert!(!log.text().contains("WARN"), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_of_several_keys_is_one_span() {
    let log = Log::default();
    {
        let _recording = log.record();
        let (client, other) = two_processes();
        let all = client.all(["a", "b"]);
        drop(all.lock().await.unwrap());
        let held = other.mutex("b").lock().await.unwrap();
        assert!(all.try_lock().await.unwrap().is_none());
        let limited = all.lock_timeout(Duration::from_secs(1)).await.unwrap();
        assert!(limited.is_none());
        drop(held);
    }
    let spans = log.spans();
    let of_all: Vec<_> = spans
        .iter()
        .filter(|span| span.contains("wait_all"))
        .collect();
    assert_eq!(of_all.len(), 3, "{spans:#?}");
    for (span, outcome) in of_all.iter().zip(["granted", "contended", "timed_out"]) {
        assert!(span.contains("keys=2") && span.contains(outcome), "{span}");
    }
}

#[tokio::test(start_paused = true)]
async fn task_that_waits_for_another_is_not_warned() {
    let log = Log::default();
    let _recording = log.record();
    let (ours, theirs) = two_processes();
    let limit = Duration::from_secs(90);
    let _held = ours.mutex("ours").lock().await.unwrap();
    let _theirs = theirs.mutex("theirs").lock().await.unwrap();
    // This task holds another key.
    assert!(
        ours.mutex("theirs")
            .lock_timeout(limit)
            .await
            .unwrap()
            .is_none()
    );
    let mutex = ours.mutex("ours");
    let waits = async move { mutex.lock_timeout(limit).await.unwrap().is_none() };
    assert!(tokio::spawn(waits).await.unwrap());
    assert!(!log.text().contains("WARN"), "{}", log.text());
}

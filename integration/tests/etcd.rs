//! The etcd backend on a real server: what a lock is.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Attempt, Broken, ErrorKind, Inspection, LockBackend, LockClient, LockGuard, LossReason, Mode, Released, Renewal,
    Request, Ttl,
};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::EtcdCluster;
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(5);

async fn backend(cluster: &EtcdCluster) -> Arc<EtcdBackend> {
    EtcdBackend::connect(&cluster.url()).await.unwrap()
}

async fn client(cluster: &EtcdCluster) -> LockClient {
    LockClient::new(backend(cluster).await)
}

fn ttl(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

async fn free(guard: LockGuard) {
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

/// What is left on the server besides sessions.
fn census(cluster: &mut EtcdCluster) -> Vec<String> {
    let mut keys = cluster.member(0).keys("").unwrap();
    keys.retain(|key| !key.starts_with("%session/"));
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_lock_excludes_and_its_tokens_grow() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster).await, client(&cluster).await);
    let mut last = 0;
    for _ in 0..5 {
        let guard = one.mutex("item/42").lock().await.unwrap();
        let token = guard.fencing_token().unwrap().get();
        assert!(token > last);
        last = token;
        assert!(guard.is_held());
        assert!(guard.remaining() > Duration::from_secs(25), "{:?}", guard.remaining());
        assert_eq!(other.mutex("item/42").try_lock().await.unwrap_err().kind(), ErrorKind::Contended);
        // Another name is another lock, also where one looks like the other's folder.
        drop(other.mutex("item").try_lock().await.unwrap());
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    let guard = other.mutex("item/42").try_lock().await.unwrap();
    assert!(guard.fencing_token().unwrap().get() > last);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    one.close().await.unwrap();
    other.close().await.unwrap();
    assert_eq!(census(&mut cluster), [""; 0]);
    assert_eq!(cluster.member(0).keys("").unwrap(), [""; 0], "close revokes the sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_of_another_process_is_woken_at_once() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster).await, client(&cluster).await);
    // The first wait warms the watch.
    let mut taken = Vec::new();
    for _ in 0..20 {
        let guard = one.mutex("k").lock().await.unwrap();
        let other = other.clone();
        let waiter = tokio::spawn(async move {
            let guard = other.mutex("k").lock().await.unwrap();
            (Instant::now(), guard)
        });
        sleep(Duration::from_millis(20)).await;
        let begun = Instant::now();
        free(guard).await;
        let (granted, guard) = timeout(SOON, waiter).await.unwrap().unwrap();
        taken.push(granted - begun);
        free(guard).await;
    }
    taken.sort_unstable();
    assert!(taken[10] < Duration::from_millis(20), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_and_no_reader_overtakes_a_waiting_writer() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (a, b, c) = (client(&cluster).await, client(&cluster).await, client(&cluster).await);
    let first = a.rwlock("k").read().await.unwrap();
    let second = b.rwlock("k").try_read().await.unwrap();
    assert_eq!(c.rwlock("k").try_write().await.unwrap_err().kind(), ErrorKind::Contended);
    let writer = tokio::spawn({
        let c = c.clone();
        async move { c.rwlock("k").write().await.unwrap() }
    });
    sleep(Duration::from_millis(100)).await;
    assert_eq!(b.rwlock("k").try_read().await.unwrap_err().kind(), ErrorKind::Contended, "a writer waits");
    let reader = tokio::spawn({
        let b = b.clone();
        async move { b.rwlock("k").read().await.unwrap() }
    });
    free(first).await;
    free(second).await;
    let writer = timeout(SOON, writer).await.unwrap().unwrap();
    assert!(!reader.is_finished());
    free(writer).await;
    let reader = timeout(SOON, reader).await.unwrap().unwrap();
    free(reader).await;
    assert_eq!(census(&mut cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_are_counted_and_two_counts_are_a_mismatch() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (a, b) = (client(&cluster).await, client(&cluster).await);
    let first = a.semaphore("gpu", 2).acquire().await.unwrap();
    let second = b.semaphore("gpu", 2).try_acquire().await.unwrap();
    assert_eq!(first.fencing_token(), None);
    assert_eq!(b.semaphore("gpu", 2).try_acquire().await.unwrap_err().kind(), ErrorKind::Contended);
    assert_eq!(client(&cluster).await.semaphore("gpu", 3).try_acquire().await.unwrap_err().kind(), ErrorKind::Mismatch);
    let mutex = a.mutex("gpu").try_lock().await.unwrap();
    let third = tokio::spawn({
        let b = b.clone();
        async move { b.semaphore("gpu", 2).acquire().await.unwrap() }
    });
    sleep(Duration::from_millis(100)).await;
    assert!(!third.is_finished());
    free(first).await;
    let third = timeout(SOON, third).await.unwrap().unwrap();
    for guard in [second, third, mutex] {
        free(guard).await;
    }
    assert_eq!(census(&mut cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_many_locks_alive_with_few_requests() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster).await, client(&cluster).await);
    let mut guards = Vec::new();
    for n in 0..50 {
        guards.push(one.mutex(format!("k{n}")).with_ttl(ttl(2)).lock().await.unwrap());
    }
    sleep(Duration::from_secs(5)).await;
    for (n, guard) in guards.into_iter().enumerate() {
        assert!(guard.is_held());
        assert_eq!(other.mutex(format!("k{n}")).try_lock().await.unwrap_err().kind(), ErrorKind::Contended);
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_not_renewed_is_given_back_and_its_neighbours_live() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster).await, client(&cluster).await);
    let kept = one.mutex("kept").with_ttl(ttl(2)).lock().await.unwrap();
    let manual = one.mutex("manual").with_ttl(ttl(2)).with_renewal(Renewal::Manual).lock().await.unwrap();
    let next = timeout(SOON, other.mutex("manual").lock()).await.unwrap().unwrap();
    assert!(!manual.is_held());
    assert_eq!(manual.lost().await, LossReason::Expired);
    assert!(kept.is_held());
    free(next).await;
    free(kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_waiters_leave_nothing() {
    let mut cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster).await, client(&cluster).await);
    let guard = one.mutex("k").lock().await.unwrap();
    for wait in [1, 3, 10, 30, 100] {
        let error = other.mutex("k").lock_within(Duration::from_millis(wait)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    sleep(Duration::from_millis(200)).await;
    assert_eq!(census(&mut cluster).len(), 1, "{:?}", census(&mut cluster));
    free(guard).await;
    assert_eq!(census(&mut cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inspection_shows_holders_and_waiters_and_breaking_hits_only_that_holder() {
    let cluster = EtcdCluster::start().unwrap();
    let one = LockClient::builder(backend(&cluster).await).with_label("one").build();
    let other = LockClient::builder(backend(&cluster).await).with_label("other").build();
    let looking = backend(&cluster).await;
    let inspect = || async { looking.inspect(&"k".try_into().unwrap()).await.unwrap() };
    let guard = one.mutex("k").with_ttl(ttl(3)).lock().await.unwrap();
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.mutex("k").with_ttl(ttl(3)).lock().await.unwrap() }
    });
    sleep(Duration::from_millis(200)).await;
    let Inspection { holders, waiters, .. } = inspect().await;
    assert_eq!((holders.len(), waiters.len()), (1, 1));
    assert_eq!((holders[0].label.as_str(), waiters[0].label.as_str()), ("one", "other"));
    assert_eq!((holders[0].mode, holders[0].token), (Some(Mode::Exclusive), guard.fencing_token()));
    assert!(holders[0].expires_in.is_some_and(|left| left <= Duration::from_secs(3)));

    // Gently: it lives to its deadline, and is told.
    let begun = Instant::now();
    assert!(matches!(looking.break_lock(&holders[0], false).await.unwrap(), Broken::FreeWithin(Some(_))));
    assert!(guard.is_held());
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LossReason::Expired);
    let next = timeout(SOON, waiter).await.unwrap().unwrap();
    assert!(
        begun.elapsed() > Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(looking.break_lock(&holders[0], true).await.unwrap(), Broken::AlreadyGone);
    assert!(next.is_held());

    // At once.
    let holders = inspect().await.holders;
    assert_eq!(looking.break_lock(&holders[0], true).await.unwrap(), Broken::Freed);
    assert_eq!(inspect().await.holders, []);
    assert_eq!(timeout(SOON, next.lost()).await.unwrap(), LossReason::Replaced);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_cannot_do_is_a_typed_error() {
    let cluster = EtcdCluster::start().unwrap();
    let one = client(&cluster).await;
    for millis in [1, 999, 1_999] {
        let error = one.mutex("k").with_ttl(Ttl::from_millis(millis).unwrap()).lock().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let mut guards = Vec::new();
    for secs in 2..=5 {
        guards.push(one.mutex(format!("k{secs}")).with_ttl(ttl(secs)).lock().await.unwrap());
    }
    let error = one.mutex("k6").with_ttl(ttl(6)).lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let floor = Request::new("k".try_into().unwrap()).with_token_floor(leasehold_core::FencingToken::new(1));
    assert_eq!(backend(&cluster).await.try_acquire(floor).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(EtcdBackend::connect("etcd://127.0.0.1:1/").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_attempt_is_woken_by_the_release() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (backend(&cluster).await, backend(&cluster).await);
    let request = || Request::new("k".try_into().unwrap()).with_ttl(ttl(5));
    for _ in 0..2 {
        let Attempt::Granted(lease) = Arc::clone(&one).try_acquire(request()).await.unwrap() else {
            panic!("contended")
        };
        let Attempt::Contended(contention) = Arc::clone(&other).try_acquire(request()).await.unwrap() else {
            panic!("granted twice")
        };
        let wake = tokio::spawn(contention.wake.unwrap());
        sleep(Duration::from_millis(100)).await;
        assert!(!wake.is_finished());
        assert_eq!(Arc::clone(&lease).release().await.unwrap(), Released::Freed);
        assert_eq!(lease.release().await.unwrap(), Released::AlreadyLost, "told once");
        timeout(SOON, wake).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_names_are_locks_of_their_own() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster).await, client(&cluster).await);
    let names: [&[u8]; 12] =
        [b"a", b"a/b", b"a/", b"/", b"..", b"{}", b"a}b", b"%", b"a%2Fb", b"\0", b"a\nb\xff", "🔒".as_bytes()];
    let mut guards = Vec::new();
    for name in names {
        guards.push(one.mutex(name).try_lock().await.unwrap());
        guards.push(one.semaphore(name, 1).try_acquire().await.unwrap());
    }
    for name in names {
        assert_eq!(other.mutex(name).try_lock().await.unwrap_err().kind(), ErrorKind::Contended);
    }
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tasks_get_thousands_of_locks() {
    let mut cluster = EtcdCluster::start().unwrap();
    let one = client(&cluster).await;
    // Enough to be gathered; every tenth name twice.
    let tasks = (0..2_000).map(|n| {
        let one = one.clone();
        tokio::spawn(async move {
            let guard = one.mutex(format!("k{}", n % 1_800)).lock().await.unwrap();
            let token = guard.fencing_token();
            free(guard).await;
            token
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        assert!(timeout(SOON * 4, task).await.unwrap().unwrap().is_some());
    }
    assert_eq!(census(&mut cluster), [""; 0]);
}

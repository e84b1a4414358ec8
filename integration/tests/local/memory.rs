//! Tests of the memory backend.

use std::{collections::VecDeque, num::NonZeroU32, sync::Arc, time::Duration};

use leasehold_core::{
    ClockDrift, Error, ErrorKind, FencingToken, LockKey, Mode, Released, Revocation, RevokeOutcome,
    TestClock, Ttl,
    backend::{Attempt, Contention, Lease, LockBackend, Request},
    quorum::{QuorumNode, TokenVote, VoteRequirements},
};
use leasehold_local::MemoryBackend;

type Backend = Arc<MemoryBackend>;

fn request(key: &str) -> Request {
    Request::new(LockKey::new(key).unwrap())
}

fn permit(key: &str, of: u32) -> Request {
    request(key).with_permit_of(NonZeroU32::new(of).unwrap())
}

/// Requirements that every node meets.
fn requirements(token_floor: FencingToken) -> VoteRequirements {
    VoteRequirements {
        epoch_required: false,
        largest_ttl: Duration::ZERO,
        token_floor,
    }
}

async fn granted(backend: &Backend, request: Request) -> Arc<dyn Lease> {
    match Arc::clone(backend).try_acquire(request).await.unwrap() {
        Attempt::Granted(lease) => lease,
        Attempt::Contended(contention) => panic!("contended: {contention:?}"),
    }
}

async fn contended(backend: &Backend, request: Request) -> Contention {
    match Arc::clone(backend).try_acquire(request).await.unwrap() {
        Attempt::Granted(lease) => panic!("granted: {lease:?}"),
        Attempt::Contended(contention) => contention,
    }
}

type Acquisition = tokio::task::JoinHandle<Result<Arc<dyn Lease>, Error>>;

/// Starts a waiter, and returns once the backend knows it.
async fn queued(backend: &Backend, request: Request) -> Acquisition {
    let before = waiters(backend, &request).await;
    let waiter = tokio::spawn(Arc::clone(backend).acquire(request.clone()));
    while waiters(backend, &request).await == before {
        assert!(!waiter.is_finished(), "it was to wait");
        tokio::task::yield_now().await;
    }
    waiter
}

async fn waiters(backend: &Backend, request: &Request) -> usize {
    backend.inspect(request.key()).await.unwrap().waiters.len()
}

fn token(lease: &Arc<dyn Lease>) -> u64 {
    lease.fencing_token().unwrap().get()
}

#[tokio::test]
async fn exclusive_excludes_all_and_readers_share() {
    let backend = Arc::new(MemoryBackend::new());
    let writer = granted(&backend, request("k")).await;
    contended(&backend, request("k")).await;
    contended(&backend, request("k").with_mode(Mode::Shared)).await;
    granted(&backend, request("other")).await;
    assert_eq!(writer.release().await.unwrap(), Released::Freed);

    let first = granted(&backend, request("k").with_mode(Mode::Shared)).await;
    let second = granted(&backend, request("k").with_mode(Mode::Shared)).await;
    contended(&backend, request("k")).await;
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    contended(&backend, request("k")).await;
    assert_eq!(second.release().await.unwrap(), Released::Freed);
    granted(&backend, request("k")).await;
}

#[tokio::test]
async fn permits_are_counted_apart_from_the_mutex_of_the_name() {
    let backend = Arc::new(MemoryBackend::new());
    let mutex = granted(&backend, request("k")).await;
    let first = granted(&backend, permit("k", 2)).await;
    let second = granted(&backend, permit("k", 2)).await;
    contended(&backend, permit("k", 2)).await;
    assert_eq!(first.fencing_token(), None);
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    granted(&backend, permit("k", 2)).await;
    assert_eq!(second.release().await.unwrap(), Released::Freed);
    assert_eq!(mutex.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn two_permit_counts_for_one_held_name_are_an_error() {
    let backend = Arc::new(MemoryBackend::new());
    let lease = granted(&backend, permit("k", 2)).await;
    let error = Arc::clone(&backend)
        .try_acquire(permit("k", 3))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.to_string().contains('2') && error.to_string().contains('3'),
        "{error}"
    );
    assert_eq!(
        Arc::clone(&backend)
            .acquire(permit("k", 3))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    lease.release().await.unwrap();
    granted(&backend, permit("k", 3)).await;
}

#[tokio::test]
async fn tokens_order_writers_and_put_readers_between_them() {
    let backend = Arc::new(MemoryBackend::new());
    let mut last = 0;
    for _ in 0..3 {
        let writer = granted(&backend, request("k")).await;
        assert!(token(&writer) > last);
        last = token(&writer);
        writer.release().await.unwrap();
        for _ in 0..2 {
            let reader = granted(&backend, request("k").with_mode(Mode::Shared)).await;
            assert!(token(&reader) > last);
            let above = token(&reader);
            reader.release().await.unwrap();
            last = last.max(above);
        }
    }
    let floor = FencingToken::new(1 << 40);
    let Attempt::Granted(raised) = backend
        .clone()
        .request_vote(request("k"), requirements(floor))
        .await
        .unwrap()
    else {
        panic!("contended")
    };
    assert!(raised.fencing_token().unwrap() > floor);
    raised.release().await.unwrap();
    let none_left = requirements(FencingToken::new(u64::MAX));
    let error = backend
        .clone()
        .request_vote(request("k"), none_left)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(token(&granted(&backend, request("k")).await) > 1 << 40);
}

#[tokio::test]
async fn raising_a_token_is_a_strict_compare_and_set_by_the_holder() {
    let backend = Arc::new(MemoryBackend::new());
    let asked = request("k");
    let lease = granted(&backend, asked.clone()).await;
    let raise = async |token| {
        let (node, requirements) = (Arc::clone(&backend), requirements(FencingToken::new(0)));
        node.raise_token(asked.clone(), requirements, token)
            .await
            .unwrap()
    };
    let raised = FencingToken::new(100);
    assert_eq!(raise(raised).await, TokenVote::Accepted);
    assert_eq!(raise(raised).await, TokenVote::Accepted);
    assert_eq!(
        raise(FencingToken::new(99)).await,
        TokenVote::Refused(Some(raised))
    );
    lease.release().await.unwrap();
    assert_eq!(
        raise(FencingToken::new(200)).await,
        TokenVote::Refused(None)
    );
    assert_eq!(token(&granted(&backend, request("k")).await), 101);
}

#[tokio::test]
async fn waiters_are_served_in_order_and_nobody_overtakes_them() {
    let backend = Arc::new(MemoryBackend::new());
    let mut held = granted(&backend, request("k")).await;
    let mut queue = VecDeque::new();
    for _ in 0..64 {
        queue.push_back(queued(&backend, request("k")).await);
    }
    while let Some(next) = queue.pop_front() {
        let before = token(&held);
        held.release().await.unwrap();
        contended(&backend, request("k")).await;
        held = next.await.unwrap().unwrap();
        assert!(token(&held) > before);
        assert!(queue.iter().all(|waiter| !waiter.is_finished()));
    }
}

#[tokio::test]
async fn no_reader_overtakes_a_waiting_writer() {
    let backend = Arc::new(MemoryBackend::new());
    let reader = granted(&backend, request("k").with_mode(Mode::Shared)).await;
    let writer = queued(&backend, request("k")).await;
    contended(&backend, request("k").with_mode(Mode::Shared)).await;
    let late = queued(&backend, request("k").with_mode(Mode::Shared)).await;
    let later = queued(&backend, request("k").with_mode(Mode::Shared)).await;
    reader.release().await.unwrap();
    let writer = writer.await.unwrap().unwrap();
    assert!(!late.is_finished() && !later.is_finished());
    writer.release().await.unwrap();
    late.await.unwrap().unwrap();
    later.await.unwrap().unwrap();
}

#[tokio::test]
async fn retrying_writer_is_not_overtaken_and_is_notified() {
    let backend = Arc::new(MemoryBackend::new());
    let reader = granted(&backend, request("k").with_mode(Mode::Shared)).await;
    let refused = contended(
        &backend,
        request("k").with_waiting(|waiting| waiting.keeps_waiting = true),
    )
    .await;
    contended(&backend, request("k").with_mode(Mode::Shared)).await;
    let late = contended(
        &backend,
        request("k")
            .with_mode(Mode::Shared)
            .with_waiting(|waiting| waiting.keeps_waiting = true),
    )
    .await;
    reader.release().await.unwrap();
    refused.wake.unwrap().await;
    // The writer gave up, so the reader is notified.
    late.wake.unwrap().await;
    granted(&backend, request("k").with_mode(Mode::Shared)).await;
}

#[tokio::test]
async fn cancelled_waiter_leaves_nothing_and_unblocks_successors() {
    let backend = Arc::new(MemoryBackend::new());
    let reader = granted(&backend, request("k").with_mode(Mode::Shared)).await;
    let writer = request("k");
    let waiting = queued(&backend, writer.clone()).await;
    let behind = queued(&backend, request("k").with_mode(Mode::Shared)).await;
    writer.cancel();
    assert_eq!(
        waiting.await.unwrap().unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    let behind = behind.await.unwrap().unwrap();
    let seen = backend.inspect(writer.key()).await.unwrap();
    assert_eq!((seen.holders.len(), seen.waiters.len()), (2, 0));
    assert_eq!(
        Arc::clone(&backend)
            .acquire(writer.clone())
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Cancelled
    );
    behind.release().await.unwrap();
    reader.release().await.unwrap();
    assert_eq!(
        backend.inspect(writer.key()).await.unwrap().holders.len(),
        0
    );
}

#[tokio::test]
async fn dropped_waiter_releases_a_grant_it_did_not_take() {
    let backend = Arc::new(MemoryBackend::new());
    let held = granted(&backend, request("k")).await;
    let mut waiter = Arc::clone(&backend).acquire(request("k"));
    tokio::select! {
        biased;
        _ = &mut waiter => panic!("it is held"),
        () = tokio::task::yield_now() => {}
    }
    held.release().await.unwrap();
    drop(waiter);
    granted(&backend, request("k")).await;
}

fn on_test_clock() -> (Backend, Arc<TestClock>) {
    let clock = Arc::new(TestClock::new());
    (
        Arc::new(MemoryBackend::with_clock(Arc::clone(&clock) as _)),
        clock,
    )
}

fn timed(key: &str, clock: &Arc<TestClock>, secs: u64) -> Request {
    let clock = Arc::clone(clock);
    request(key)
        .with_ttl(Ttl::from_secs(secs).unwrap())
        .with_clock(clock, ClockDrift::NONE)
}

#[tokio::test(start_paused = true)]
async fn expiry_of_a_holder_notifies_the_waiter() {
    let (backend, clock) = on_test_clock();
    let start = tokio::time::Instant::now();
    let silent = granted(&backend, timed("k", &clock, 10)).await;
    let second = queued(&backend, timed("k", &clock, 1)).await;
    let third = queued(&backend, timed("k", &clock, 10)).await;
    let second = second.await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
    assert!(token(&second) > token(&silent));
    // The TTL of the new holder ends before the time at which the next waiter would have checked.
    third.await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_secs(), 11);
    assert_eq!(
        silent.clone().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(silent.release().await.unwrap(), Released::AlreadyLost);
    assert_eq!(
        backend
            .inspect(&LockKey::new("k").unwrap())
            .await
            .unwrap()
            .holders
            .len(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_renewed_holder_stays_until_it_stops_renewing() {
    let (backend, clock) = on_test_clock();
    let start = tokio::time::Instant::now();
    let lease = granted(&backend, timed("k", &clock, 10)).await;
    let waiter = queued(&backend, timed("k", &clock, 10)).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(6)).await;
        let before = lease.valid_until();
        Arc::clone(&lease).renew().await.unwrap();
        assert!(lease.valid_until() > before);
    }
    assert!(!waiter.is_finished());
    waiter.await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_secs(), 28);
}

#[tokio::test(start_paused = true)]
async fn suspended_time_counts() {
    let (backend, clock) = on_test_clock();
    let lease = granted(&backend, timed("k", &clock, 10)).await;
    contended(&backend, timed("k", &clock, 10)).await;
    clock.suspend(Duration::from_secs(10));
    granted(&backend, timed("k", &clock, 10)).await;
    assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn release_is_idempotent_and_never_frees_a_successor() {
    let backend = Arc::new(MemoryBackend::new());
    let old = granted(&backend, request("k")).await;
    assert_eq!(Arc::clone(&old).release().await.unwrap(), Released::Freed);
    let new = granted(&backend, request("k")).await;
    assert_eq!(
        Arc::clone(&old).release().await.unwrap(),
        Released::AlreadyLost
    );
    assert_eq!(old.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    contended(&backend, request("k")).await;
    assert_eq!(new.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn inspection_shows_holders_and_waiters() {
    let backend = Arc::new(MemoryBackend::new());
    let lease = granted(&backend, request("k").with_label("anna")).await;
    let _permit = granted(&backend, permit("k", 4).with_label("paul")).await;
    let _waiter = queued(
        &backend,
        request("k").with_mode(Mode::Shared).with_label("berta"),
    )
    .await;
    let seen = backend.inspect(&LockKey::new("k").unwrap()).await.unwrap();
    let holders: Vec<_> = seen
        .holders
        .iter()
        .map(|holder| (holder.label.as_str(), holder.token))
        .collect();
    assert_eq!(holders, [("anna", lease.fencing_token()), ("paul", None)]);
    assert!(
        seen.holders
            .iter()
            .all(|holder| holder.expires_in.unwrap() > Duration::from_secs(1))
    );
    assert_eq!(
        (seen.waiters[0].label.as_str(), seen.waiters[0].mode),
        ("berta", Some(Mode::Shared))
    );
}

#[tokio::test]
async fn immediate_revocation_notifies_holder_and_spares_newer_ones() {
    let backend = Arc::new(MemoryBackend::new());
    let old = granted(&backend, request("k")).await;
    let waiter = queued(&backend, request("k")).await;
    let holder = backend
        .inspect(&LockKey::new("k").unwrap())
        .await
        .unwrap()
        .holders
        .remove(0);
    assert_eq!(
        backend
            .revoke(&holder, Revocation::Immediate)
            .await
            .unwrap(),
        RevokeOutcome::Freed
    );
    let new = waiter.await.unwrap().unwrap();
    assert_eq!(
        backend
            .revoke(&holder, Revocation::Immediate)
            .await
            .unwrap(),
        RevokeOutcome::AlreadyGone
    );
    assert_eq!(old.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    new.renew().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn graceful_revocation_only_ends_the_renewals() {
    let (backend, clock) = on_test_clock();
    let start = tokio::time::Instant::now();
    let lease = granted(&backend, timed("k", &clock, 10)).await;
    let holder = backend
        .inspect(&LockKey::new("k").unwrap())
        .await
        .unwrap()
        .holders
        .remove(0);
    let broken = backend.revoke(&holder, Revocation::Graceful).await.unwrap();
    assert_eq!(
        broken,
        RevokeOutcome::FreeWithin(Some(Duration::from_secs(10)))
    );
    assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Revoked);
    contended(&backend, timed("k", &clock, 10)).await;
    Arc::clone(&backend)
        .acquire(timed("k", &clock, 10))
        .await
        .unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_under_the_lock_are_never_lost() {
    let backend = Arc::new(MemoryBackend::new());
    let counter = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (backend, counter) = (Arc::clone(&backend), Arc::clone(&counter));
            tokio::spawn(async move {
                for _ in 0..50 {
                    let lease = Arc::clone(&backend).acquire(request("k")).await.unwrap();
                    let seen = counter.load(std::sync::atomic::Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    counter.store(seen + 1, std::sync::atomic::Ordering::Relaxed);
                    lease.release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(counter.load(std::sync::atomic::Ordering::Relaxed), 800);
}

//! Sessions over a fake server, in paused time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use super::*;
use crate::{
    backend::request::{LossNotifier, Request},
    clock::{ClockDrift, Deadline, TestClock},
    error::{Error, ErrorKind, Result},
    signal::LossReason,
    ttl::Ttl,
};

#[derive(Debug, Default)]
struct Server {
    sessions: Mutex<HashMap<u32, Vec<u32>>>,
    broken: Mutex<Vec<u32>>,
    opened: AtomicUsize,
    renewed: AtomicUsize,
    closed: AtomicUsize,
    deleted: Mutex<Vec<u32>>,
    down: AtomicBool,
    /// If set, the entries of a session cannot be listed.
    blind: AtomicBool,
    /// If set, the next listing reports that the session has ended.
    over_when_looked_at: AtomicBool,
    /// Zero means unlimited.
    capacity: usize,
    /// Zero means unlimited.
    max_sessions: usize,
    /// If set, the weight of a claim is its number.
    weighs: bool,
}

impl Server {
    fn has(&self, session: u32, claim: u32) {
        self.sessions
            .lock()
            .unwrap()
            .get_mut(&session)
            .unwrap()
            .push(claim);
    }

    async fn trip(&self) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.down.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "down"));
        }
        Ok(())
    }
}

#[async_trait]
impl SessionDriver for Server {
    type Handle = u32;
    type Claim = u32;

    fn capacity(&self) -> usize {
        if self.capacity == 0 {
            usize::MAX
        } else {
            self.capacity
        }
    }

    fn weight(&self, claim: &u32) -> usize {
        if self.weighs { *claim as usize } else { 1 }
    }

    fn max_sessions(&self) -> usize {
        if self.max_sessions == 0 {
            usize::MAX
        } else {
            self.max_sessions
        }
    }

    async fn open(&self, time: &SessionClock) -> Result<Opened<u32>> {
        let sent = time.now();
        self.trip().await?;
        if self.sessions.lock().unwrap().len() >= self.max_sessions() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "there are as many as there may be",
            ));
        }
        let handle = self.opened.fetch_add(1, Ordering::Relaxed) as u32;
        self.sessions.lock().unwrap().insert(handle, Vec::new());
        Ok(Opened {
            handle,
            deadline: time.deadline_from(sent),
        })
    }

    async fn renew(&self, handle: &u32, time: &SessionClock) -> Result<Deadline> {
        let sent = time.now();
        self.trip().await?;
        if !self.sessions.lock().unwrap().contains_key(handle) {
            return Err(Error::new(ErrorKind::Lost, "no such session"));
        }
        self.renewed.fetch_add(1, Ordering::Relaxed);
        Ok(time.deadline_from(sent))
    }

    async fn list_owned(&self, handle: &u32) -> Result<Owned<u32>> {
        self.trip().await?;
        if self.blind.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the answer is larger than the limit",
            ));
        }
        if self.over_when_looked_at.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Lost, "the connection was given up"));
        }
        let claims = self
            .sessions
            .lock()
            .unwrap()
            .get(handle)
            .cloned()
            .unwrap_or_default();
        Ok(Owned {
            claims,
            revoked: self.broken.lock().unwrap().clone(),
        })
    }

    async fn delete_orphans(&self, handle: &u32, orphans: Vec<u32>) -> Result<()> {
        self.trip().await?;
        self.sessions
            .lock()
            .unwrap()
            .get_mut(handle)
            .unwrap()
            .retain(|claim| !orphans.contains(claim));
        self.deleted.lock().unwrap().extend(orphans);
        Ok(())
    }

    async fn close(&self, handle: &u32) -> Result<()> {
        self.trip().await?;
        self.sessions.lock().unwrap().remove(handle);
        self.closed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn setup() -> (Arc<Server>, Arc<Sessions<Server>>, Arc<TestClock>) {
    let server = Arc::new(Server::default());
    (
        Arc::clone(&server),
        Arc::new(Sessions::new(server)),
        Arc::new(TestClock::new()),
    )
}

fn request(clock: &Arc<TestClock>, secs: u64) -> Request {
    let clock: Arc<TestClock> = Arc::clone(clock);
    Request::new("k".try_into().unwrap())
        .with_clock(clock, ClockDrift::NONE)
        .with_ttl(Ttl::from_secs(secs).unwrap())
}

/// Returns a request and the notifier of its loss.
fn held_request(clock: &Arc<TestClock>) -> (Request, LossNotifier) {
    let request = request(clock, 10);
    let notifier = request.loss_notifier();
    (request, notifier)
}

#[tokio::test(start_paused = true)]
async fn many_locks_share_one_session_and_one_renewal() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 10);
    let claims =
        futures_util::future::join_all((0..100).map(|n| sessions.claim(&request, move |_, _| n)))
            .await;
    let claims: Vec<_> = claims.into_iter().map(Result::unwrap).collect();
    assert_eq!(server.opened.load(Ordering::Relaxed), 1);
    let before = claims[0].valid_until();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for outcome in
        futures_util::future::join_all(claims.iter().map(|claim| claim.session().renew())).await
    {
        outcome.unwrap();
    }
    assert!(server.renewed.load(Ordering::Relaxed) <= 2);
    assert!(claims[99].valid_until() > before);
}

#[tokio::test(start_paused = true)]
async fn a_fifth_ttl_is_refused_until_one_is_idle() {
    let (server, sessions, clock) = setup();
    let mut claims = Vec::new();
    for secs in 1..=4 {
        claims.push(
            sessions
                .claim(&request(&clock, 10 * secs), |_, _| 0)
                .await
                .unwrap(),
        );
    }
    let error = sessions
        .claim(&request(&clock, 50), |_, _| 0)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("10s, 20s, 30s, 40s"), "{error}");
    claims.remove(1);
    let fifth = sessions
        .claim(&request(&clock, 50), |_, _| 0)
        .await
        .unwrap();
    assert_eq!(fifth.session().ttl(), Ttl::from_secs(50).unwrap());
    assert_eq!(server.closed.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn only_an_idle_session_is_closed_for_a_new_one() {
    let server = Arc::new(Server {
        max_sessions: 2,
        ..Server::default()
    });
    let (sessions, clock) = (
        Sessions::new(Arc::clone(&server)),
        Arc::new(TestClock::new()),
    );
    let claim = async |secs| {
        sessions
            .claim(&request(&clock, secs), |_, _| secs as u32)
            .await
    };
    let held = claim(10).await.unwrap();
    drop(claim(20).await.unwrap());
    // The session of 20 s is idle.
    let third = claim(30).await.unwrap();
    assert_eq!(server.closed.load(Ordering::Relaxed), 1);
    assert!(held.session().is_live() && third.session().is_live());
    assert_eq!(claim(40).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(server.closed.load(Ordering::Relaxed), 1);
    drop(held);
    claim(40).await.unwrap();
    assert!(third.session().is_live());
}

#[tokio::test(start_paused = true)]
async fn a_session_lives_while_somebody_waits_and_is_closed_when_idle() {
    let (server, sessions, clock) = setup();
    let claim = sessions
        .claim(&request(&clock, 10), |_, _| 0)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(claim.session().is_live());
    let renewed = server.renewed.load(Ordering::Relaxed);
    assert!((15..=20).contains(&renewed), "{renewed}");
    drop(claim);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(server.closed.load(Ordering::Relaxed), 1);
    assert!(sessions.live().is_empty());
}

#[tokio::test(start_paused = true)]
async fn session_without_a_renewal_task_expires() {
    let (_, sessions, clock) = setup();
    let claim = sessions
        .claim(&request(&clock, 10), |_, _| 0)
        .await
        .unwrap();
    let (lock, notifier) = held_request(&clock);
    assert!(claim.hold(notifier));
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!claim.session().is_live());
    assert_eq!(lock.signal().loss(), Some(LossReason::Expired));
}

#[tokio::test(start_paused = true)]
async fn end_of_a_session_notifies_holders_and_waiters() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 10);
    let (holder, waiter) = (
        sessions.claim(&request, |_, _| 1).await.unwrap(),
        sessions.claim(&request, |_, _| 2).await.unwrap(),
    );
    let (lock, notifier) = held_request(&clock);
    assert!(holder.hold(notifier));
    server.sessions.lock().unwrap().clear();
    assert_eq!(
        holder.session().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(lock.signal().loss(), Some(LossReason::SessionEnded));
    waiter.session().ended().await;
    let (_, notifier) = held_request(&clock);
    assert!(
        !waiter.hold(notifier),
        "nothing is granted in a session that is over"
    );
    let next = sessions.claim(&request, |_, _| 3).await.unwrap();
    assert_ne!(next.session().id(), holder.session().id());
}

#[tokio::test(start_paused = true)]
async fn session_found_over_after_its_renewal_is_not_extended() {
    let (server, sessions, clock) = setup();
    let claim = sessions
        .claim(&request(&clock, 10), |_, _| 1)
        .await
        .unwrap();
    let (lock, notifier) = held_request(&clock);
    assert!(claim.hold(notifier));
    server.over_when_looked_at.store(true, Ordering::Relaxed);
    assert_eq!(
        claim.session().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(server.renewed.load(Ordering::Relaxed), 1);
    assert_eq!(lock.signal().loss(), Some(LossReason::SessionEnded));
}

#[tokio::test(start_paused = true)]
async fn waiters_for_one_renewal_do_not_overfill_its_session() {
    let server = Arc::new(Server {
        capacity: 3,
        ..Server::default()
    });
    let (sessions, clock) = (
        Arc::new(Sessions::new(Arc::clone(&server))),
        Arc::new(TestClock::new()),
    );
    let request = request(&clock, 10);
    drop(sessions.claim(&request, |_, _| 0).await.unwrap());
    // Less than half of the TTL is left, so that each claim renews first.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let claims =
        futures_util::future::join_all((1..=20).map(|n| sessions.claim(&request, move |_, _| n)))
            .await;
    let claims: Vec<_> = claims.into_iter().map(Result::unwrap).collect();
    let mut filled = HashMap::new();
    for claim in &claims {
        *filled.entry(*claim.session().handle()).or_insert(0) += 1;
    }
    assert!(
        filled.len() == 7 && filled.values().all(|claims| *claims <= 3),
        "{filled:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn claims_fill_a_session_by_their_weight() {
    let server = Arc::new(Server {
        capacity: 100,
        weighs: true,
        ..Server::default()
    });
    let (sessions, clock) = (
        Sessions::new(Arc::clone(&server)),
        Arc::new(TestClock::new()),
    );
    let request = request(&clock, 10);
    let claim = async |weight| sessions.claim(&request, move |_, _| weight).await.unwrap();
    let (heavy, light) = (claim(60).await, claim(50).await);
    assert_eq!(heavy.session().id(), light.session().id());
    let next = claim(1).await;
    assert_ne!(next.session().id(), heavy.session().id());
    drop(heavy);
    assert_eq!(
        claim(2).await.session().id(),
        light.session().id(),
        "there is room in it again"
    );
}

#[tokio::test(start_paused = true)]
async fn locks_are_lost_if_owned_entries_cannot_be_listed() {
    let (server, sessions, clock) = setup();
    let held = sessions
        .claim(&request(&clock, 10), |_, _| 1)
        .await
        .unwrap();
    let (lock, notifier) = held_request(&clock);
    assert!(held.hold(notifier));
    server.has(0, 1);
    server.blind.store(true, Ordering::Relaxed);
    // For one TTL the session is still renewed: a passing fault loses no lock.
    for _ in 0..4 {
        held.session().renew().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let until = held.valid_until();
    let error = held.session().renew().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(held.valid_until(), until, "the deadline stays");
    server.blind.store(false, Ordering::Relaxed);
    held.session().renew().await.unwrap();
    assert!(held.valid_until() > until, "it recovers");
    server.blind.store(true, Ordering::Relaxed);
    while held.session().is_live() {
        drop(held.session().renew().await);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(
            server.renewed.load(Ordering::Relaxed) < 50,
            "it is renewed for ever"
        );
    }
    assert_eq!(
        held.session().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(lock.signal().loss(), Some(LossReason::Expired));
}

/// Listing the entries fails at random, and at some time the server takes the lock away. The holder
/// considers the lock held for at most three more TTLs.
#[tokio::test(start_paused = true)]
async fn a_lock_taken_away_is_noticed_whatever_fails() {
    for seed in 0..200_u64 {
        let mut state = seed;
        let mut below = |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let (server, sessions, clock) = setup();
        let held = sessions
            .claim(&request(&clock, 10), |_, _| 1)
            .await
            .unwrap();
        let (lock, notifier) = held_request(&clock);
        assert!(held.hold(notifier));
        server.has(0, 1);
        let mut taken = None;
        for _ in 0..80 {
            match below(10) {
                0 => {
                    let _before = server.blind.fetch_not(Ordering::Relaxed);
                }
                1 if taken.is_none() => {
                    server.sessions.lock().unwrap().get_mut(&0).unwrap().clear();
                    taken = Some(held.session().now());
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(500 + below(2_500))).await;
            drop(held.session().renew().await);
            let now = held.session().now();
            if lock.signal().loss().is_some() || held.valid_until().is_past(now) {
                break;
            }
            let believed = taken.map_or(Duration::ZERO, |taken| now.since(taken));
            assert!(
                believed <= Duration::from_secs(30),
                "seed {seed}: believed {believed:?} after it was taken away"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_renewal_does_not_revive() {
    let (server, sessions, clock) = setup();
    let claim = sessions
        .claim(&request(&clock, 10), |_, _| 1)
        .await
        .unwrap();
    clock.suspend(Duration::from_secs(11));
    assert_eq!(
        claim.session().renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(server.renewed.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn renewal_removes_orphans_and_nothing_else() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 10);
    let held = sessions.claim(&request, |_, _| 1).await.unwrap();
    let waiting = sessions.claim(&request, |_, _| 2).await.unwrap();
    let (lock, notifier) = held_request(&clock);
    assert!(held.hold(notifier));
    for claim in 1..=3 {
        server.has(0, claim);
    }
    held.session().renew().await.unwrap();
    assert_eq!(*server.deleted.lock().unwrap(), [3]);
    drop(waiting);
    held.session().renew().await.unwrap();
    assert_eq!(*server.deleted.lock().unwrap(), [3, 2]);
    assert_eq!(lock.signal().loss(), None);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_late_is_undone_soon_whatever_the_ttl() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 3_600);
    let waiting = sessions.claim(&request, |_, _| 1).await.unwrap();
    let failed = sessions.claim(&request, |_, _| 2).await.unwrap();
    failed.tombstone();
    drop(failed);
    // The first reconciliations find nothing, because the request is still on its way.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(*server.deleted.lock().unwrap(), [0; 0]);
    server.has(0, 2);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(*server.deleted.lock().unwrap(), [2]);

    // Also if nobody waits, and after an outage.
    drop(waiting);
    let failed = sessions.claim(&request, |_, _| 3).await.unwrap();
    server.down.store(true, Ordering::Relaxed);
    failed.mark_uncertain();
    drop(failed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.down.store(false, Ordering::Relaxed);
    server.has(0, 3);
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(*server.deleted.lock().unwrap(), [2, 3]);
    let renewed = server.renewed.load(Ordering::Relaxed);
    assert!(renewed < 20, "{renewed} renewals");
}

#[tokio::test(start_paused = true)]
async fn requests_without_answers_in_a_row_put_off_no_check() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 3_600);
    let failed = sessions.claim(&request, |_, _| 1).await.unwrap();
    let failing = sessions.claim(&request, |_, _| 2).await.unwrap();
    failed.tombstone();
    drop(failed);
    server.has(0, 1);
    for _ in 0..100 {
        failing.mark_uncertain();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(*server.deleted.lock().unwrap(), [1]);
    let renewed = server.renewed.load(Ordering::Relaxed);
    assert!(renewed < 30, "{renewed} renewals");
}

#[tokio::test(start_paused = true)]
async fn reconciliation_spares_concurrent_claims_and_releases() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 10);
    let released = sessions.claim(&request, |_, _| 1).await.unwrap();
    server.has(0, 1);
    let session = Arc::clone(released.session());
    let renewal = tokio::spawn(async move { session.renew().await });
    // The renewal takes a millisecond, and listing the entries takes another.
    tokio::time::sleep(Duration::from_micros(1_500)).await;
    released.release();
    let passing = sessions.claim(&request, |_, _| 2).await.unwrap();
    server.has(0, 2);
    drop(passing);
    renewal.await.unwrap().unwrap();
    assert_eq!(*server.deleted.lock().unwrap(), [0; 0]);
    released.session().renew().await.unwrap();
    assert_eq!(*server.deleted.lock().unwrap(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn taken_or_retired_name_is_skipped() {
    let (_, sessions, clock) = setup();
    let request = request(&clock, 10);
    let first = sessions.claim(&request, |_, number| number).await.unwrap();
    let second = sessions.claim(&request, |_, number| number).await.unwrap();
    assert_eq!((*first.name(), *second.name()), (0, 1));
    first.tombstone();
    drop((first, second));
    assert_eq!(
        *sessions
            .claim(&request, |_, number| number)
            .await
            .unwrap()
            .name(),
        1
    );
    let taken = sessions.claim(&request, |_, _| 0).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn renewal_detects_lost_and_revoked_locks() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 10);
    let (taken, broken) = (
        sessions.claim(&request, |_, _| 1).await.unwrap(),
        sessions.claim(&request, |_, _| 2).await.unwrap(),
    );
    let ((first, one), (second, two)) = (held_request(&clock), held_request(&clock));
    assert!(taken.hold(one) && broken.hold(two));
    server.has(0, 2);
    server.broken.lock().unwrap().push(2);
    broken.session().renew().await.unwrap();
    assert_eq!(
        (first.signal().loss(), second.signal().loss()),
        (Some(LossReason::Replaced), None)
    );
    let frozen = broken.valid_until();
    tokio::time::sleep(Duration::from_secs(1)).await;
    broken.session().renew().await.unwrap();
    assert_eq!(broken.valid_until(), frozen);
    assert!(broken.is_revoked() && broken.session().valid_until() > frozen);
}

#[tokio::test(start_paused = true)]
async fn outage_fails_all_waiters_at_once() {
    let (server, sessions, clock) = setup();
    server.down.store(true, Ordering::Relaxed);
    let request = request(&clock, 10);
    let begun = tokio::time::Instant::now();
    let claims =
        futures_util::future::join_all((0..100).map(|n| sessions.claim(&request, move |_, _| n)))
            .await;
    assert!(
        claims
            .iter()
            .all(|claim| claim.as_ref().unwrap_err().kind() == ErrorKind::Unavailable)
    );
    assert!(
        begun.elapsed() <= Duration::from_millis(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn after_close_there_is_nothing_and_nothing_starts() {
    let (server, sessions, clock) = setup();
    let request = request(&clock, 10);
    let claim = sessions.claim(&request, |_, _| 1).await.unwrap();
    sessions.close().await.unwrap();
    assert!(server.sessions.lock().unwrap().is_empty() && !claim.session().is_live());
    assert_eq!(
        sessions.claim(&request, |_, _| 2).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

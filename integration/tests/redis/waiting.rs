//! Waiters are notified by pushes, even after failures, and leave nothing behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    Server, TERMS, attempt, granted, granted_to, key, refused, refused_to, request, token, ttl,
    until,
};
use futures_util::{FutureExt, future::join_all};
use leasehold_core::{
    ErrorKind, WaiterNotification,
    backend::{Attempt, LockBackend, Request, acquire_with_retry},
    quorum::QuorumNode,
};
use leasehold_redis::{NotificationMode, RedisBackend, RedisConfig, redis};
use leasehold_testkit::subscribe;
use tokio::{task::JoinSet, time::timeout};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_release_wakes_a_waiter_with_the_net_an_hour_away() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    assert_eq!(
        b.capabilities().waiter_notification,
        WaiterNotification::Pushed
    );
    for _ in 0..50 {
        let held = granted(&a, request("k")).await;
        let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
        until("registered", || async {
            !b.inspect(&key("k")).await.unwrap().waiters.is_empty()
        })
        .await;
        held.release().await.unwrap();
        let next = timeout(SOON, waiting)
            .await
            .expect("never woken")
            .unwrap()
            .unwrap();
        next.release().await.unwrap();
    }
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn expiry_and_flush_notify_a_waiter_without_polling() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    let dead = granted(&a, request("k").with_ttl(ttl(300))).await;
    let next = timeout(SOON, Arc::clone(&b).acquire(request("k")))
        .await
        .expect("the expiry did not wake")
        .unwrap();
    assert!(token(&next) > token(&dead));
    let waiting = tokio::spawn(Arc::clone(&a).acquire(request("k")));
    until("registered", || async {
        !b.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    let () = redis::cmd("FLUSHALL")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    let last = timeout(SOON, waiting)
        .await
        .expect("the flush did not wake")
        .unwrap()
        .unwrap();
    assert!(token(&last) > token(&next));
}

#[tokio::test]
async fn a_foreign_release_wakes_a_waiter() {
    let server = Server::start();
    let backend = server.pushed().await;
    let mut raw = server.raw().await;
    let () = redis::cmd("SET")
        .arg("k")
        .arg("5f0e")
        .arg("NX")
        .query_async(&mut raw)
        .await
        .unwrap();
    let waiting = tokio::spawn(Arc::clone(&backend).acquire(request("k")));
    until("registered", || async {
        !backend.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    let () = redis::cmd("DEL")
        .arg("k")
        .query_async(&mut raw)
        .await
        .unwrap();
    timeout(SOON, waiting)
        .await
        .expect("never woken")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_lost_connection_and_a_restart_do_not_lose_a_waiter() {
    let mut server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    let held = granted(&a, request("k")).await;
    let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    until("registered", || async {
        !a.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    // Close all other connections. The waiter reconnects and enables tracking again.
    let mut raw = server.raw().await;
    let () = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .query_async(&mut raw)
        .await
        .unwrap();
    until("connected again", || {
        let mut raw = raw.clone();
        async move {
            let clients: String = redis::cmd("CLIENT")
                .arg("LIST")
                .query_async(&mut raw)
                .await
                .unwrap();
            clients
                .lines()
                .any(|client| client.contains("flags=t") && client.contains("cmd=evalsha"))
        }
    })
    .await;
    held.release().await.unwrap();
    let mut next = timeout(SOON, waiting)
        .await
        .expect("never woken")
        .unwrap()
        .unwrap();

    for _ in 0..2 {
        let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
        until("registered", || async {
            !b.inspect(&key("k")).await.unwrap().waiters.is_empty()
        })
        .await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
        let after = timeout(SOON, waiting)
            .await
            .expect("lost in the restart")
            .unwrap()
            .unwrap();
        assert!(token(&after) > token(&next));
        next = after;
    }
}

#[tokio::test]
async fn a_cancelled_waiter_leaves_no_lock_and_no_registration() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    for shared in [false, true] {
        let held = granted(&a, request("k")).await;
        let mode = if shared {
            leasehold_core::Mode::Shared
        } else {
            leasehold_core::Mode::Exclusive
        };
        let wanted = request("k").with_mode(mode).with_label("patient");
        let waiting = tokio::spawn(Arc::clone(&b).acquire(wanted.clone()));
        until("registered", || async {
            let waiters = a.inspect(&key("k")).await.unwrap().waiters;
            waiters
                .iter()
                .any(|waiter| waiter.label == "patient" && waiter.mode == Some(mode))
        })
        .await;
        wanted.cancel();
        assert_eq!(
            waiting.await.unwrap().unwrap_err().kind(),
            ErrorKind::Cancelled
        );
        assert_eq!(server.leftovers().await, ["k"]);
        held.release().await.unwrap();
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_yielding_request_lets_another_process_pass() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    // Yielding costs nothing without waiters.
    let held = granted(
        &a,
        request("k").with_waiting(|waiting| waiting.yields = true),
    )
    .await;
    let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    until("registered", || async {
        !a.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    let release = held.release();
    let again = Arc::clone(&a).acquire(request("k").with_waiting(|waiting| waiting.yields = true));
    // All attempts are in one task, so only yielding lets the other one in.
    let (released, again) = tokio::join!(release, async {
        let mut again = again;
        assert!((&mut again).now_or_never().is_none());
        let next = timeout(SOON, waiting)
            .await
            .expect("barged in")
            .unwrap()
            .unwrap();
        next.release().await.unwrap();
        again.await
    });
    released.unwrap();
    again.unwrap().release().await.unwrap();
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_yielding_request_is_not_blocked_by_a_dead_waiter() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let held = granted(&a, request("k")).await;
    refused(
        &b,
        request("k").with_waiting(|waiting| waiting.keeps_waiting = true),
    )
    .await;
    held.release().await.unwrap();
    let contention = refused(
        &a,
        request("k").with_waiting(|waiting| waiting.yields = true),
    )
    .await;
    assert!(
        contention.retry_after.unwrap() < Duration::from_secs(1),
        "a short time, not a TTL"
    );
    let acquired =
        Arc::clone(&a).acquire(request("k").with_waiting(|waiting| waiting.yields = true));
    tokio::time::timeout(Duration::from_secs(20), acquired)
        .await
        .expect("well within the TTL")
        .unwrap();
}

#[tokio::test]
async fn without_pushes_waiters_poll_and_the_capabilities_say_so() {
    let server = Server::with(&["--rename-command", "CLIENT", "NOBODY"]);
    let by_choice = RedisBackend::connect(&format!("{}?notifications=poll", server.url()))
        .await
        .unwrap();
    let by_need = server.backend().await;
    for backend in [by_choice, by_need] {
        assert!(matches!(
            backend.capabilities().waiter_notification,
            WaiterNotification::Polled(_)
        ));
        let held = granted(&backend, request("k")).await;
        let waiting = tokio::spawn(Arc::clone(&backend).acquire(request("k")));
        tokio::time::sleep(Duration::from_millis(100)).await;
        held.release().await.unwrap();
        let next = timeout(Duration::from_secs(20), waiting)
            .await
            .expect("does not poll within the TTL")
            .unwrap()
            .unwrap();
        next.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_thousand_waiters_on_other_keys_are_not_disturbed() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.pushed().await);
    let held = granted(&a, request("k")).await;
    granted(&a, request("busy")).await.release().await.unwrap();
    let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    until("registered", || async {
        !a.inspect(&key("k")).await.unwrap().waiters.is_empty()
    })
    .await;
    let mut raw = server.raw().await;
    let () = redis::cmd("CONFIG")
        .arg("RESETSTAT")
        .query_async(&mut raw)
        .await
        .unwrap();
    for n in 0..1000 {
        granted(&a, request(&format!("busy{n}")))
            .await
            .release()
            .await
            .unwrap();
    }
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert!(stats.contains("cmdstat_evalsha:calls=2000,"), "{stats}");
    held.release().await.unwrap();
    timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
}

/// Each attempt changes the lists of waiters of its lock, of which Redis 7.0 notifies the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_of_many_waiters_notify_none_of_them() {
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let requests: Vec<_> = (0..300)
        .map(|n| request(&format!("k{n}")).with_ttl(ttl(600_000)))
        .collect();
    for request in &requests {
        granted(&a, request.clone()).await;
    }
    let refused = requests.into_iter().map(|request| {
        let waiter = request
            .as_new_owner()
            .with_waiting(|waiting| waiting.keeps_waiting = true);
        refused(&b, waiter)
    });
    let refused = join_all(refused).await;
    b.ping().await.unwrap();
    let notified = refused
        .into_iter()
        .filter_map(|contention| contention.wake.unwrap().now_or_never())
        .count();
    assert_eq!(notified, 0);
}

#[tokio::test]
async fn a_config_that_polls_needs_no_resp3() {
    let server = Server::start();
    let client = redis::Client::open(server.url()).unwrap();
    let config = RedisConfig::new()
        .with_notifications(NotificationMode::Polled)
        .with_prefix("p:");
    let backend = RedisBackend::from_client(&client, config).await.unwrap();
    granted(&backend, request("k")).await;
    assert_eq!(server.leftovers().await, ["p:k"]);
}

/// Every waiting process makes one attempt per hand-off, and another one after a notification that
/// does not concern it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_off_costs_each_waiting_process_bounded_commands() {
    const PROCESSES: usize = 8;
    const ROUNDS: usize = 25;
    let server = Server::start();
    let mut backends = Vec::new();
    for _ in 0..PROCESSES {
        backends.push(server.pushed().await);
    }
    let mut raw = server.raw().await;
    let () = redis::cmd("CONFIG")
        .arg("RESETSTAT")
        .query_async(&mut raw)
        .await
        .unwrap();
    let tasks: Vec<_> = backends
        .into_iter()
        .map(|backend| {
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    let lease = Arc::clone(&backend).acquire(request("k")).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    lease.release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        timeout(Duration::from_secs(30), task)
            .await
            .expect("never woken")
            .unwrap();
    }
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut raw)
        .await
        .unwrap();
    let calls: usize = stats
        .lines()
        .find_map(|line| {
            line.strip_prefix("cmdstat_evalsha:calls=")?
                .split(',')
                .next()?
                .parse()
                .ok()
        })
        .unwrap();
    let per_hand_over = calls as f64 / (PROCESSES * ROUNDS) as f64;
    assert!(
        per_hand_over <= 2.0 * PROCESSES as f64,
        "{per_hand_over} commands per hand-over"
    );
    println!("{per_hand_over} commands per hand-over among {PROCESSES}");
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

/// Returns how many scripts the server has run by their hash.
async fn scripts_run(server: &Server) -> u64 {
    let stats = server.info("commandstats").await;
    let calls = stats.lines().find_map(|line| {
        line.strip_prefix("cmdstat_evalsha:calls=")?
            .split(',')
            .next()?
            .parse()
            .ok()
    });
    calls.unwrap_or(0)
}

/// Starts a task for each of this many held keys that waits for it forever.
async fn wait_for(
    backend: &Arc<RedisBackend>,
    holder: &Arc<RedisBackend>,
    keys: usize,
    node: bool,
) -> JoinSet<()> {
    let request = |at: usize| request(&format!("k{at}")).with_ttl(ttl(3_600_000));
    let mut tasks = JoinSet::new();
    for at in 0..keys {
        std::mem::forget(granted_to(holder, request(at), node).await);
        let (backend, request) = (Arc::clone(backend), request(at));
        tasks.spawn(async move {
            drop(if node {
                acquire_with_retry(request, |request| {
                    Arc::clone(&backend).request_vote(request, TERMS)
                })
                .await
            } else {
                backend.acquire(request).await
            });
        });
    }
    tasks
}

/// A server that no longer tracks a key reports it as changed. The number of requests that follow
/// is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_waited_for_keys_than_the_server_tracks_cause_no_storm() {
    const KEYS: usize = 60;
    for node in [false, true] {
        let server = Server::with(&["--tracking-table-max-keys", "10"]);
        let (a, b) = (server.backend().await, server.backend().await);
        let tasks = wait_for(&b, &a, KEYS, node).await;
        until("all wait", || async {
            b.inspect(&key("k59")).await.unwrap().waiters.len() == 1
        })
        .await;
        let (before, began) = (scripts_run(&server).await, std::time::Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (run, took) = (scripts_run(&server).await - before, began.elapsed());
        // Each waiter may make a few attempts at first, then one per second, and one every two
        // seconds to stay registered.
        let most = (KEYS as f64 * (10.0 + 2.0 * took.as_secs_f64())) as u64;
        println!("{run} scripts in {took:?}");
        assert!(
            run <= most,
            "{run} scripts in {took:?} for {KEYS} idle waiters, of at most {most}"
        );
        drop(tasks);
    }
}

/// Counts warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// The permit that is acquired again each time expires before the one that is always held.
#[tokio::test]
async fn permits_of_other_ttls_that_come_and_go_slow_no_waiter_down() {
    let warnings = Warnings::default();
    let _subscribed = subscribe(warnings.clone());
    let server = Server::start();
    let (a, b) = (server.backend().await, server.backend().await);
    let permit = |millis| {
        request("k")
            .with_permit_of(2.try_into().unwrap())
            .with_ttl(ttl(millis))
    };
    let _long = granted(&a, permit(600_000)).await;
    let mut short = granted(&a, permit(60_000)).await;
    let waiter = permit(60_000).with_waiting(|waiting| waiting.keeps_waiting = true);
    for _ in 0..15 {
        let wake = refused(&b, waiter.clone()).await.wake.unwrap();
        short.release().await.unwrap();
        short = granted(&a, permit(60_000)).await;
        wake.await;
    }
    assert_eq!(warnings.0.load(Ordering::Relaxed), 0, "it is notified late");
}

/// An attempt without a notification says nothing about notifications.
#[tokio::test]
async fn a_waiter_that_asks_often_is_notified_as_soon_as_any_other() {
    let warnings = Warnings::default();
    let _subscribed = subscribe(warnings.clone());
    let server = Server::start();
    let a = server.backend().await;
    let config = RedisConfig::new().with_fallback_poll_interval(Duration::from_millis(10));
    let b = RedisBackend::from_client(&redis::Client::open(server.url()).unwrap(), config)
        .await
        .unwrap();
    let held = granted(&a, request("k").with_ttl(ttl(600_000))).await;
    let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    tokio::time::sleep(Duration::from_secs(2)).await;
    held.release().await.unwrap();
    timeout(SOON, waiting)
        .await
        .expect("never woken")
        .unwrap()
        .unwrap();
    assert_eq!(warnings.0.load(Ordering::Relaxed), 0, "it is notified late");
}

/// Returns a request of a waiter.
fn waiter() -> Request {
    request("k").with_waiting(|waiting| waiting.keeps_waiting = true)
}

/// Returns the request of a notified waiter. A quorum uses a new owner for each attempt.
fn again(waiter: &Request, node: bool) -> Request {
    if node {
        waiter.as_new_owner()
    } else {
        waiter.clone()
    }
}

/// Returns the next attempt of a waiter that lets earlier waiters go first.
fn in_order(waiter: &Request, node: bool) -> Request {
    again(waiter, node).with_waiting(|waiting| waiting.in_order = true)
}

/// Acquires the lock and releases it.
async fn is_served(backend: &Arc<RedisBackend>, request: Request, node: bool) {
    let held = granted_to(backend, request, node).await;
    held.release().await.unwrap();
}

/// Acquires the lock for `a`, registers waiters of `b` and `c` in this order, and releases the
/// lock.
async fn two_wait([a, b, c]: [&Arc<RedisBackend>; 3], node: bool) -> [Request; 2] {
    let held = granted_to(a, waiter(), node).await;
    let (first, second) = (waiter(), waiter());
    refused_to(b, first.clone(), node).await;
    refused_to(c, second.clone(), node).await;
    held.release().await.unwrap();
    [first, second]
}

#[tokio::test]
async fn who_came_earlier_goes_first() {
    let server = Server::start();
    let (a, b, c) = (
        server.backend().await,
        server.backend().await,
        server.backend().await,
    );
    for node in [false, true] {
        let [first, second] = two_wait([&a, &b, &c], node).await;
        let contention = refused_to(&c, in_order(&second, node), node).await;
        let soon = contention.retry_after.unwrap();
        assert!(
            soon < Duration::from_secs(1),
            "the other may be dead: {soon:?}"
        );
        is_served(&b, in_order(&first, node), node).await;
        is_served(&c, in_order(&second, node), node).await;
    }
}

#[tokio::test]
async fn waiter_that_does_not_take_its_turn_loses_its_position() {
    let server = Server::start();
    let (a, b, c) = (
        server.backend().await,
        server.backend().await,
        server.backend().await,
    );
    for node in [false, true] {
        let [slow, second] = two_wait([&a, &b, &c], node).await;
        // The slow waiter may have made its attempt just now, and its time starts only then.
        let held = loop {
            match attempt(&c, in_order(&second, node), node).await {
                Attempt::Granted(held) => break held,
                Attempt::Contended(contention) => {
                    tokio::time::sleep(contention.retry_after.unwrap()).await;
                }
            }
        };
        let third = waiter();
        refused_to(&a, third.clone(), node).await;
        held.release().await.unwrap();
        refused_to(&b, in_order(&slow, node), node).await;
        is_served(&a, in_order(&third, node), node).await;
        is_served(&b, in_order(&slow, node), node).await;
    }
}

/// Returns the existing lists of waiters.
async fn lists(server: &Server) -> Vec<String> {
    server
        .leftovers()
        .await
        .into_iter()
        .filter(|key| key.ends_with("order") || key.ends_with("writers"))
        .collect()
}

/// Returns a request that does not wait.
fn passer_by() -> Request {
    waiter().with_waiting(|waiting| waiting.keeps_waiting = false)
}

#[tokio::test]
async fn who_is_first_and_finds_it_taken_keeps_its_place() {
    let server = Server::start();
    let (a, b, c) = (
        server.backend().await,
        server.backend().await,
        server.backend().await,
    );
    for node in [false, true] {
        let [first, second] = two_wait([&a, &b, &c], node).await;
        let held = granted_to(&a, passer_by(), node).await;
        refused_to(&b, in_order(&first, node), node).await;
        held.release().await.unwrap();
        refused_to(&c, in_order(&second, node), node).await;
        is_served(&b, in_order(&first, node), node).await;
        is_served(&c, in_order(&second, node), node).await;
    }
    assert_eq!(lists(&server).await, Vec::<String>::new());
}

#[tokio::test]
async fn request_behind_a_lone_waiter_keeps_its_position() {
    let server = Server::start();
    let (a, b, c) = (
        server.backend().await,
        server.backend().await,
        server.backend().await,
    );
    let mut raw = server.raw().await;
    let held = granted_to(&a, waiter(), true).await;
    let first = waiter();
    refused_to(&b, first.clone(), true).await;
    held.release().await.unwrap();
    refused_to(
        &c,
        again(&passer_by(), true).with_waiting(|waiting| waiting.in_order = true),
        true,
    )
    .await;
    for list in lists(&server).await {
        let left: i64 = redis::cmd("PTTL")
            .arg(&list)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert!(left > 0, "{list} would stay for ever: {left}");
    }
    granted_to(
        &b,
        again(&first, true).with_waiting(|waiting| waiting.in_order = true),
        true,
    )
    .await
    .release()
    .await
    .unwrap();
    assert_eq!(lists(&server).await, Vec::<String>::new());
}

//! The local queue: one contender per key and process, in order, and with yielding.

mod support;

use std::{
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::FutureExt;
use leasehold_core::LockClient;
use support::{settle, spied, two_processes};
use tokio::task::JoinHandle;

fn lock_in_background(
    client: &LockClient,
    order: &Arc<Mutex<Vec<usize>>>,
    number: usize,
) -> JoinHandle<()> {
    let (client, order) = (client.clone(), Arc::clone(order));
    tokio::spawn(async move {
        let guard = client.mutex("a").lock().await.unwrap();
        order.lock().unwrap().push(number);
        guard.release().await.unwrap();
    })
}

#[tokio::test(start_paused = true)]
async fn one_local_task_contends_remotely_and_order_is_kept() {
    let (client, watched, _) = spied();
    let held = client.mutex("a").lock().await.unwrap();
    let order = Arc::default();
    let mut tasks = Vec::new();
    for number in 0..200 {
        tasks.push(lock_in_background(&client, &order, number));
        tokio::task::yield_now().await;
    }
    settle().await;
    assert_eq!(watched.acquires.load(SeqCst), 1, "the holder's own");
    held.release().await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..200).collect::<Vec<_>>());
    assert_eq!(
        watched.acquires.load(SeqCst),
        201,
        "one attempt for each grant"
    );
}

#[tokio::test(start_paused = true)]
async fn next_waiter_starts_when_a_pipelined_release_is_sent() {
    for unordered in [false, true] {
        let (client, watched, clock) = spied();
        watched.unordered.store(unordered, SeqCst);
        // The capabilities are read once, when the client is made.
        let client = LockClient::builder(Arc::clone(client.backend()))
            .with_clock(clock)
            .build();
        let held = client.mutex("a").lock().await.unwrap();
        let next = lock_in_background(&client, &Arc::default(), 0);
        settle().await;
        watched.answers_wait.store(true, SeqCst);
        let releasing = tokio::spawn(held.release());
        settle().await;
        assert_eq!(watched.acquires.load(SeqCst), if unordered { 1 } else { 2 });
        watched.answers_wait.store(false, SeqCst);
        watched.answer.notify_waiters();
        releasing.await.unwrap().unwrap();
        next.await.unwrap();
        assert_eq!(watched.acquires.load(SeqCst), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn it_yields_after_a_bounded_number_of_grants() {
    let (client, watched, _) = spied();
    let order = Arc::default();
    let tasks: Vec<_> = (0..200)
        .map(|number| lock_in_background(&client, &order, number))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let yielding = watched.yielding.lock().unwrap();
    let longest = yielding
        .split(|yielding| *yielding)
        .map(<[bool]>::len)
        .max()
        .unwrap();
    assert!(yielding.contains(&true) && longest <= 4, "{yielding:?}");
    assert!(
        yielding.iter().filter(|yielding| **yielding).count() <= 50,
        "yielding is not the rule"
    );
}

#[tokio::test(start_paused = true)]
async fn only_writers_yield_when_the_quota_is_used_up() {
    let (client, watched, _) = spied();
    let lock = client.rwlock("a");
    for _ in 0..4 {
        lock.write().await.unwrap().release().await.unwrap();
    }
    lock.read().await.unwrap().release().await.unwrap();
    lock.write().await.unwrap().release().await.unwrap();
    let yielding = watched.yielding.lock().unwrap();
    assert_eq!(*yielding, [false, false, false, false, false, true]);
}

#[tokio::test(start_paused = true)]
async fn releaser_that_locks_again_at_once_yields() {
    let (client, watched, _) = spied();
    for _ in 0..100 {
        client
            .mutex("a")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let yielding = watched
        .yielding
        .lock()
        .unwrap()
        .iter()
        .filter(|yielding| **yielding)
        .count();
    assert!((20..=25).contains(&yielding), "{yielding} of 100");
    // After a pause there is nothing to make up for.
    tokio::time::sleep(Duration::from_millis(100)).await;
    client
        .mutex("a")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_eq!(watched.yielding.lock().unwrap().last(), Some(&false));
}

#[tokio::test(start_paused = true)]
async fn loop_of_tries_yields() {
    let (client, watched, _) = spied();
    for _ in 0..100 {
        client
            .mutex("a")
            .try_lock()
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let yielding = watched
        .yielding
        .lock()
        .unwrap()
        .iter()
        .filter(|yielding| **yielding)
        .count();
    assert!((20..=25).contains(&yielding), "{yielding} of 100");
    // Beside a task of this process, which may be waiting, it always is.
    let guard = client.mutex("a").lock().await.unwrap();
    assert!(client.mutex("a").try_lock().await.unwrap().is_none());
    assert_eq!(watched.yielding.lock().unwrap().last(), Some(&true));
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn attempt_refused_to_yield_yields_again() {
    let (ours, theirs) = two_processes();
    for _ in 0..3 {
        ours.mutex("a")
            .try_lock()
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let held = ours.mutex("a").try_lock().await.unwrap().unwrap();
    let order = Arc::default();
    let waiting = lock_in_background(&theirs, &order, 0);
    settle().await;
    held.release().await.unwrap();
    while !waiting.is_finished() {
        if let Some(guard) = ours.mutex("a").try_lock().await.unwrap() {
            assert_eq!(*order.lock().unwrap(), [0], "it overtook a waiter");
            guard.release().await.unwrap();
        }
        settle().await;
    }
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_yields_after_a_bounded_time() {
    let (client, watched, _) = spied();
    let guard = client.mutex("a").lock().await.unwrap();
    let order = Arc::default();
    let next = lock_in_background(&client, &order, 0);
    tokio::time::sleep(Duration::from_millis(60)).await;
    guard.release().await.unwrap();
    next.await.unwrap();
    assert_eq!(*watched.yielding.lock().unwrap(), [false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_head_hands_its_place_on() {
    let (ours, theirs) = two_processes();
    let held = theirs.mutex("a").lock().await.unwrap();
    let order = Arc::default();
    let head = lock_in_background(&ours, &order, 0);
    settle().await;
    let second = lock_in_background(&ours, &order, 1);
    let third = lock_in_background(&ours, &order, 2);
    settle().await;
    head.abort();
    second.abort();
    settle().await;
    held.release().await.unwrap();
    third.await.unwrap();
    assert_eq!(*order.lock().unwrap(), [2]);
    drop(theirs.mutex("a").try_lock().await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_in_the_queue_is_passed_over() {
    let (client, _, _) = spied();
    let held = client.mutex("a").lock().await.unwrap();
    let short = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .mutex("a")
                .lock_timeout(Duration::from_secs(1))
                .await
                .unwrap()
        }
    });
    settle().await;
    let order = Arc::default();
    let next = lock_in_background(&client, &order, 0);
    assert!(short.await.unwrap().is_none());
    held.release().await.unwrap();
    next.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn try_lock_does_not_wait_behind_a_waiting_task() {
    let (ours, theirs) = two_processes();
    let held = theirs.mutex("a").lock().await.unwrap();
    let order = Arc::default();
    let waiting = lock_in_background(&ours, &order, 0);
    settle().await;
    let tried = tokio::time::timeout(Duration::from_millis(1), ours.mutex("a").try_lock()).await;
    assert!(tried.expect("no wait").unwrap().is_none());
    held.release().await.unwrap();
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn readers_go_together_and_overtake_no_writer() {
    let (ours, theirs) = two_processes();
    let held = theirs.mutex("a").lock().await.unwrap();
    let order: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let reader = |name: &'static str| {
        let (lock, order) = (ours.rwlock("a"), Arc::clone(&order));
        tokio::spawn(async move {
            let _guard = lock.read().await.unwrap();
            order.lock().unwrap().push(name);
            tokio::time::sleep(Duration::from_secs(1)).await;
        })
    };
    let early: Vec<_> = (0..10).map(|_| reader("early")).collect();
    settle().await;
    let writer = {
        let (lock, order) = (ours.rwlock("a"), Arc::clone(&order));
        tokio::spawn(async move {
            let _guard = lock.write().await.unwrap();
            order.lock().unwrap().push("writer");
        })
    };
    settle().await;
    let late: Vec<_> = (0..10).map(|_| reader("late")).collect();
    settle().await;
    held.release().await.unwrap();
    settle().await;
    assert_eq!(
        *order.lock().unwrap(),
        ["early"; 10],
        "all at once, and no more"
    );
    for task in early.into_iter().chain([writer]).chain(late) {
        task.await.unwrap();
    }
    let mut expected = vec!["early"; 10];
    expected.push("writer");
    expected.extend(["late"; 10]);
    assert_eq!(*order.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn permits_of_one_process_are_granted_up_to_their_number() {
    let (client, watched, _) = spied();
    let mut guards = Vec::new();
    for _ in 0..3 {
        guards.push(client.semaphore("a", 3).acquire().await.unwrap());
    }
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let semaphore = client.semaphore("a", 3);
            tokio::spawn(async move { drop(semaphore.acquire().await.unwrap()) })
        })
        .collect();
    settle().await;
    assert_eq!(
        watched.acquires.load(SeqCst),
        4,
        "one of fifty waits remotely"
    );
    assert!(
        client
            .semaphore("a", 3)
            .try_acquire()
            .await
            .unwrap()
            .is_none()
    );
    guards.clear();
    for task in waiting {
        task.await.unwrap();
    }
}

/// A client whose releases are known to be over when they are answered: after `yields`, or else
/// when the test says so.
fn unordered(yields: usize) -> (LockClient, Arc<support::spy::Watched>) {
    let (client, watched, clock) = spied();
    watched.unordered.store(true, SeqCst);
    watched.releases_yield.store(yields, SeqCst);
    watched.answers_wait.store(yields == 0, SeqCst);
    (
        LockClient::builder(Arc::clone(client.backend()))
            .with_clock(clock)
            .build(),
        watched,
    )
}

#[tokio::test(start_paused = true)]
async fn a_try_waits_for_no_release_where_there_is_room() {
    let (client, _) = unordered(0);
    let (lock, semaphore) = (client.rwlock("a"), client.semaphore("a", 2));
    for _ in 0..3 {
        drop(lock.read().await.unwrap());
        drop(semaphore.acquire().await.unwrap());
    }
    settle().await;
    // Longer than this the releases are not answered.
    let soon = Duration::from_secs(600);
    drop(
        tokio::time::timeout(soon, lock.try_read())
            .await
            .expect("it waits")
            .unwrap()
            .unwrap(),
    );
    drop(
        tokio::time::timeout(soon, semaphore.try_acquire())
            .await
            .expect("it waits")
            .unwrap()
            .unwrap(),
    );
}

#[tokio::test(start_paused = true)]
async fn a_try_waits_only_for_releases_that_began_before_it() {
    let (client, watched) = unordered(0);
    let lock = client.rwlock("a");
    drop(lock.read().await.unwrap());
    settle().await;
    let trying = tokio::spawn({
        let lock = lock.clone();
        async move {
            lock.try_write()
                .await
                .map(|guard| drop(guard.expect("it is free")))
        }
    });
    settle().await;
    assert!(!trying.is_finished(), "the reader's release is on its way");
    drop(lock.read().await.unwrap());
    settle().await;
    // The first one's.
    watched.answer.notify_one();
    settle().await;
    assert!(trying.is_finished(), "it waits for a later one's");
    trying.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_later_release_ends_no_wait_for_an_earlier_one() {
    let (client, watched) = unordered(20);
    let lock = client.rwlock("a");
    let (slow, fast) = (lock.read().await.unwrap(), lock.read().await.unwrap());
    drop(slow);
    let trying = tokio::spawn(async move { lock.try_write().await.map(|guard| guard.is_some()) });
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    assert!(!trying.is_finished(), "it waits for the first release");
    watched.releases_yield.store(0, SeqCst);
    drop(fast);
    assert!(trying.await.unwrap().unwrap(), "both are released");
}

#[tokio::test(start_paused = true)]
async fn a_try_for_a_permit_waits_for_a_release_that_makes_room() {
    let (client, watched) = unordered(3);
    let semaphore = client.semaphore("a", 1);
    drop(semaphore.acquire().await.unwrap());
    drop(semaphore.try_acquire().await.unwrap().unwrap());
    assert_eq!(watched.tries.load(SeqCst), 2, "refused, and then granted");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_tries_waits_for_the_release_of_a_writer() {
    let (client, _) = unordered(3);
    let lock = client.rwlock("a");
    drop(lock.write().await.unwrap());
    drop(lock.try_read().await.unwrap().expect("it is released"));
}

#[tokio::test(start_paused = true)]
async fn a_place_of_a_waiter_that_left_meanwhile_is_passed_on() {
    let (client, _, _) = spied();
    let (mutex, order) = (client.mutex("a"), Arc::default());
    let held = mutex.lock().await.unwrap();
    let mut leaves = Box::pin(mutex.lock());
    settle().await;
    assert!((&mut leaves).now_or_never().is_none());
    let next = lock_in_background(&client, &order, 0);
    settle().await;
    // The place is assigned to the first waiter, which is not polled any more.
    held.release().await.unwrap();
    drop(leaves);
    tokio::time::timeout(Duration::from_secs(3600), next)
        .await
        .expect("the place is lost")
        .unwrap();
}

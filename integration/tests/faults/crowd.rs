//! Many waiters.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use leasehold_integration::{
    checker::grants_between,
    held::HeldMode,
    steps::{millis, token},
    worker::{Answer, Command, EventLog, Op, Patience, Phase, Storm},
};

use crate::{
    fixture::Fixture,
    support::{granted, nothing_left, until},
};

const CROWD: u32 = 1_000;
/// The number of waits of the lone waiter.
const WAITS: usize = 20;
/// The number of hand-offs that a waiter beside a crowd may observe in at least half of its waits.
const HAND_OFFS: usize = 50;
/// The maximum number of hand-offs in any wait. A process that is not scheduled observes more than
/// fairness allows; a starved one observes thousands.
const MOST_HAND_OFFS: usize = 1_000;

/// Runs a process in which a thousand tasks queue repeatedly, beside one that acquires the lock
/// occasionally.
pub(crate) async fn lone_waiter_beside_a_thousand_is_served_soon(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let (mut crowd, mut single) = (stage.worker("crowd"), stage.worker("single"));
    let storm = Storm {
        tasks: CROWD,
        key: "k".into(),
        within_ms: 600_000,
        hold_us: 0,
        write: false,
        ..Storm::default()
    };
    assert!(matches!(
        crowd.ask(Command::Storm(storm)).unwrap(),
        Answer::Storming
    ));
    let mut count = || match crowd.ask(Command::Count).unwrap() {
        Answer::Storm { granted, .. } => granted,
        other => panic!("{other:?}"),
    };
    until("the crowd is at work", || count() >= 200);
    for _ in 0..WAITS {
        // Keeps the waits separate, so that none is one of several grants in a row to its process.
        thread::sleep(millis(60));
        granted(
            single
                .ask(HeldMode::Writer.command(Patience::Within(20_000)))
                .unwrap(),
        );
        single.ask(Command::Release { slot: 0 }).unwrap();
    }
    let events = EventLog::merge(&[stage.log("crowd"), stage.log("single")]).unwrap();
    let times = |phase| {
        let events = events
            .iter()
            .filter(move |event| event.proc == "single" && event.op == Op::Acquire);
        events
            .filter(move |event| event.phase == phase)
            .map(|event| event.t_ns)
    };
    let mut passed: Vec<_> = times(Phase::Invoke)
        .zip(times(Phase::Ok))
        .map(|(asked, told)| grants_between(&events, |proc| proc == "crowd", asked, told))
        .collect();
    println!(
        "{}: hand-offs that the single waiter saw pass by: {passed:?}",
        fixture.url()
    );
    assert_eq!(passed.len(), WAITS);
    passed.sort_unstable();
    assert!(
        passed[WAITS / 2] <= HAND_OFFS && passed[WAITS - 1] <= MOST_HAND_OFFS,
        "{passed:?}"
    );
    // The crowd kept making progress.
    assert!(passed[WAITS - 1] > 0, "there was no crowd to compete with");
}

const KEYS: usize = 100;
const WAITERS: usize = 10_000;
/// Long enough for a busy machine.
const ALL_SERVED: Duration = Duration::from_secs(300);

pub(crate) async fn ten_thousand_waiters_on_a_hundred_keys_are_all_served(
    fixture: &mut dyn Fixture,
) {
    let client = fixture.client().await;
    // All tasks wait until every one has started.
    let mut held = Vec::new();
    for key in 0..KEYS {
        held.push(client.mutex(format!("k{key}")).lock().await.unwrap());
    }
    let taken: Arc<Vec<AtomicBool>> = Arc::new((0..KEYS).map(|_| AtomicBool::new(false)).collect());
    let waiters: Vec<_> = (0..WAITERS)
        .map(|n| {
            let (mutex, taken) = (client.mutex(format!("k{}", n % KEYS)), Arc::clone(&taken));
            tokio::spawn(async move {
                let guard = mutex.lock().await.unwrap();
                let twice = taken[n % KEYS].swap(true, Ordering::SeqCst);
                assert!(!twice, "two clients hold the lock");
                let token = token(&guard);
                tokio::task::yield_now().await;
                taken[n % KEYS].store(false, Ordering::SeqCst);
                guard.release().await.unwrap();
                (n % KEYS, token)
            })
        })
        .collect();
    tokio::time::sleep(millis(1_000)).await;
    for guard in held {
        guard.release().await.unwrap();
    }
    let mut tokens: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for waiter in waiters {
        let served = tokio::time::timeout(ALL_SERVED, waiter).await;
        let (key, token) = served.expect("a waiter was not granted").unwrap();
        tokens.entry(key).or_default().push(token);
    }
    for (key, mut tokens) in tokens {
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(
            tokens.len(),
            WAITERS / KEYS,
            "key {key}: tokens are repeated"
        );
    }
    nothing_left(fixture);
}

use std::collections::BTreeMap;

use leasehold_integration::{
    checker::grants_between,
    server::RedisServer,
    worker::{Answer, Command, EventLog, Op, Patience, Phase, Storm},
};
use tokio::task::JoinSet;

use crate::support::{Stage, client_of, granted, millis, nothing_left, nothing_panicked, until};

const CROWD: u32 = 1000;
const TTL: u64 = 30_000;

/// The number of hand-offs that a waiter beside a crowd must observe in at least half of its waits.
const HAND_OFFS: usize = 50;
/// The maximum number of hand-offs in any wait. A process that is not scheduled observes more than
/// fairness allows; a starved one observes thousands.
const MOST_HAND_OFFS: usize = 1000;

/// Runs a process in which a thousand tasks queue repeatedly, beside one that acquires the lock
/// occasionally.
fn beside_a_crowd(stage: &Stage) {
    let (mut crowd, mut single) = (stage.worker("crowd"), stage.worker("single"));
    let storm = Storm {
        tasks: CROWD,
        key: "k".into(),
        within_ms: 60_000,
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
    until("the crowd is at work", millis(20_000), || count() >= 200);
    for _ in 0..20 {
        // Keeps the waits separate, so that none is one of several grants in a row to its process.
        std::thread::sleep(millis(60));
        granted(single.lock(0, "k", Patience::Within(20_000)).unwrap());
        single.ask(Command::Release { slot: 0 }).unwrap();
    }
    let total = count();
    let events = EventLog::merge(&[stage.log("crowd"), stage.log("single")]).unwrap();
    let times = |phase| {
        let events = events
            .iter()
            .filter(move |event| event.proc == "single" && event.op == Op::Acquire);
        events
            .filter(move |event| event.phase == phase)
            .map(|event| event.t_ns)
    };
    let passed: Vec<_> = times(Phase::Invoke)
        .zip(times(Phase::Ok))
        .map(|(asked, told)| grants_between(&events, |proc| proc == "crowd", asked, told))
        .collect();
    println!(
        "{}: {total} grants in the crowd; hand-offs that the single waiter saw pass by: {passed:?}",
        stage.url()
    );
    assert_eq!(passed.len(), 20);
    let mut sorted = passed.clone();
    sorted.sort_unstable();
    assert!(
        sorted[sorted.len() / 2] <= HAND_OFFS && sorted[sorted.len() - 1] <= MOST_HAND_OFFS,
        "{passed:?}"
    );
    // The crowd kept making progress.
    assert!(
        passed.iter().sum::<usize>() > 0,
        "there was no crowd to compete with"
    );
}

#[test]
fn lone_waiter_beside_a_thousand_is_served_soon_on_redis() {
    let server = RedisServer::start().unwrap();
    beside_a_crowd(&Stage::on(&server.url(), TTL));
}

#[test]
fn lone_waiter_beside_a_thousand_is_served_soon_on_files() {
    beside_a_crowd(&Stage::on_files(TTL));
}

/// Returns the number of calls by command, without the harness's own.
fn calls(server: &RedisServer) -> BTreeMap<String, u64> {
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query(&mut server.connection().unwrap())
        .unwrap();
    let stats = stats.lines().filter_map(|line| {
        let (command, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((command.to_owned(), rest.split_once(',')?.0.parse().ok()?))
    });
    stats
        .filter(|(command, _)| !command.starts_with("info") && !command.starts_with("client"))
        .collect()
}

/// Returns the cost of `waiters` in one process: commands per hand-off, and commands while they
/// only wait.
async fn cost(waiters: usize) -> (f64, u64) {
    let server = RedisServer::start().unwrap();
    let (client, rival) = (
        client_of(&server.url(), TTL).await,
        client_of(&server.url(), TTL).await,
    );
    let guard = rival.mutex("k").lock().await.unwrap();
    let mut crowd = JoinSet::new();
    for _ in 0..waiters {
        let mutex = client.mutex("k");
        crowd.spawn(async move { mutex.lock().await.unwrap().release().await.unwrap() });
    }
    let total = || calls(&server).values().sum::<u64>();
    tokio::time::sleep(millis(300)).await;
    let begun = total();
    tokio::time::sleep(millis(1000)).await;
    let waited = total();
    guard.release().await.unwrap();
    while let Some(released) = crowd.join_next().await {
        released.unwrap();
    }
    let handed = total();
    println!("{waiters} waiters: {:?}", calls(&server));
    nothing_left(&server, millis(1000));
    ((handed - waited) as f64 / waiters as f64, waited - begun)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_off_cost_does_not_depend_on_number_of_waiters() {
    let ((few, few_waiting), (many, many_waiting)) = (cost(10).await, cost(1000).await);
    println!("commands per hand-off: {few:.2} with 10 waiters, {many:.2} with 1 000");
    assert!(many <= few + 1.0, "{few} with 10 waiters, {many} with 1000");
    // Waiters are notified and do not poll. The holder renews at most once in 6 s.
    assert!(
        few_waiting <= 6 && many_waiting <= 6,
        "{few_waiting} and {many_waiting} commands in 1 s of waiting"
    );
    nothing_panicked();
}

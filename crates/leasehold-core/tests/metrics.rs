//! Metrics: every operation is measured once, and no label names a lock.
#![cfg(feature = "metrics")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use leasehold_core::{
    ErrorKind, FencingToken, LockClient, LockKey, Record, Renewal, Revocation, TestClock,
    backend::{Attempt, Request},
    once::{Occurrence, Turn},
    quorum::{QuorumBackend, QuorumConfig, QuorumMember, QuorumNode, VoteRequirements},
};
use leasehold_local::MemoryBackend;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use support::{flaky::Flaky, secs, settle, simulated, spied, two_processes};

/// Records the metrics of this thread while the test runs.
struct Recording(DebuggingRecorder);

impl Recording {
    fn new() -> Self {
        Self(DebuggingRecorder::new())
    }

    /// Returns the metrics since the last call as `name{label=value}`: the increments of counters,
    /// the changes (or values) of gauges, and all values of histograms. The recorder then starts at
    /// zero.
    fn take(&self) -> BTreeMap<String, Vec<f64>> {
        let mut taken = BTreeMap::new();
        for (key, unit, description, value) in self.0.snapshotter().snapshot().into_vec() {
            let key = key.key();
            let labels: Vec<_> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let name = format!("{}{{{}}}", key.name(), labels.join(","));
            assert!(
                unit.is_some() && description.is_some(),
                "{name} is not described"
            );
            let values = match value {
                DebugValue::Counter(0) => continue,
                DebugValue::Counter(count) => vec![count as f64],
                DebugValue::Gauge(value) => vec![f64::from(value)],
                DebugValue::Histogram(values) if values.is_empty() => continue,
                DebugValue::Histogram(values) => values.into_iter().map(f64::from).collect(),
            };
            taken.insert(name, values);
        }
        taken
    }
}

/// Asserts that exactly these metrics were recorded.
#[track_caller]
fn expect(taken: &BTreeMap<String, Vec<f64>>, expected: &[(&str, f64)]) {
    let taken: Vec<_> = taken
        .iter()
        .map(|(name, values)| (name.as_str(), values.as_slice()))
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, value)| (*name, std::slice::from_ref(value)))
        .collect();
    assert_eq!(taken, expected);
}

#[tokio::test(start_paused = true)]
async fn a_pair_counts_one_acquisition_and_one_release_with_its_times() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (one, other) = two_processes();
    let guard = one.mutex("a").lock().await.unwrap();
    expect(
        &recording.take(),
        &[
            (
                "leasehold_acquisitions_total{backend=memory,outcome=granted}",
                1.0,
            ),
            ("leasehold_held{backend=memory}", 1.0),
            ("leasehold_wait_seconds{backend=memory}", 0.0),
            ("leasehold_waiting{backend=memory}", 0.0),
        ],
    );
    let waiting = tokio::spawn(async move { other.mutex("a").lock().await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    expect(
        &recording.take(),
        &[
            ("leasehold_held{backend=memory}", 0.0),
            ("leasehold_waiting{backend=memory}", 1.0),
        ],
    );
    guard.release().await.unwrap();
    let guard = waiting.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(guard);
    settle().await;
    let taken = recording.take();
    let near = |name: &str, expected: &[f64]| {
        let values = &taken[name];
        assert_eq!(values.len(), expected.len(), "{taken:?}");
        assert!(
            values
                .iter()
                .zip(expected)
                .all(|(value, expected)| (value - expected).abs() < 0.1),
            "{taken:?}"
        );
    };
    near("leasehold_wait_seconds{backend=memory}", &[2.0]);
    near("leasehold_hold_seconds{backend=memory}", &[2.0, 3.0]);
    near(
        "leasehold_acquisitions_total{backend=memory,outcome=granted}",
        &[1.0],
    );
    near(
        "leasehold_releases_total{backend=memory,outcome=freed}",
        &[2.0],
    );
    near("leasehold_held{backend=memory}", &[-1.0]);
    near("leasehold_waiting{backend=memory}", &[-1.0]);
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_that_fails_counts_once_by_how_it_failed() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (one, other) = two_processes();
    let _guard = one.mutex("a").lock().await.unwrap();
    let outcomes = || {
        let mut outcomes = recording.take();
        outcomes.retain(|name, _| name.starts_with("leasehold_acquisitions_total"));
        outcomes
    };
    outcomes();
    let mutex = other.mutex("a");
    assert!(mutex.try_lock().await.unwrap().is_none());
    expect(
        &outcomes(),
        &[(
            "leasehold_acquisitions_total{backend=memory,outcome=contended}",
            1.0,
        )],
    );
    assert!(
        mutex
            .lock_timeout(Duration::from_secs(1))
            .await
            .unwrap()
            .is_none()
    );
    expect(
        &outcomes(),
        &[(
            "leasehold_acquisitions_total{backend=memory,outcome=timed_out}",
            1.0,
        )],
    );
    let owner = other.reentrant_owner();
    assert!(
        owner
            .lock_timeout("a", Duration::from_secs(1))
            .await
            .unwrap()
            .is_none()
    );
    expect(
        &outcomes(),
        &[(
            "leasehold_acquisitions_total{backend=memory,outcome=timed_out}",
            1.0,
        )],
    );
    assert!(
        tokio::time::timeout(Duration::from_secs(1), mutex.lock())
            .await
            .is_err()
    );
    expect(
        &outcomes(),
        &[(
            "leasehold_acquisitions_total{backend=memory,outcome=cancelled}",
            1.0,
        )],
    );
    assert_eq!(
        other.mutex("").lock().await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    expect(
        &outcomes(),
        &[(
            "leasehold_acquisitions_total{backend=memory,outcome=invalid_input}",
            1.0,
        )],
    );
    settle().await;
    other.close().await.unwrap();
    assert_eq!(
        mutex.try_lock().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    expect(
        &outcomes(),
        &[(
            "leasehold_acquisitions_total{backend=memory,outcome=closed}",
            1.0,
        )],
    );
}

#[tokio::test(start_paused = true)]
async fn to_reenter_is_neither_an_acquisition_nor_a_release() {
    let (client, _) = simulated();
    let owner = client.reentrant_owner();
    let outer = owner.lock("a").await.unwrap();
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    owner.lock("a").await.unwrap().release().await.unwrap();
    expect(&recording.take(), &[]);
    drop(outer);
}

#[tokio::test(start_paused = true)]
async fn a_loss_counts_once_with_its_reason_and_not_as_a_release() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, _) = simulated();
    let mutex = client.mutex("a").with_ttl(secs(3));
    let ends = || {
        let mut ends = recording.take();
        ends.retain(|name, _| {
            ["_losses_", "_releases_", "_held"]
                .iter()
                .any(|end| name.contains(end))
        });
        ends
    };
    let guard = mutex
        .clone()
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    guard.lost().await;
    drop(guard);
    settle().await;
    expect(
        &ends(),
        &[
            ("leasehold_held{backend=memory}", 0.0),
            ("leasehold_losses_total{backend=memory,reason=expired}", 1.0),
        ],
    );
    let guard = mutex.lock().await.unwrap();
    let holder = client.inspect("a").await.unwrap().holders.remove(0);
    client.revoke(&holder, Revocation::Immediate).await.unwrap();
    guard.lost().await;
    drop(guard);
    settle().await;
    expect(
        &ends(),
        &[
            ("leasehold_held{backend=memory}", 0.0),
            (
                "leasehold_losses_total{backend=memory,reason=replaced}",
                1.0,
            ),
        ],
    );
    let _guard = mutex.lock().await.unwrap();
    client.close().await.unwrap();
    expect(
        &ends(),
        &[
            ("leasehold_held{backend=memory}", 0.0),
            (
                "leasehold_losses_total{backend=memory,reason=client_closed}",
                1.0,
            ),
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn renewals_count_by_their_outcome() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, watched, _) = spied();
    let _guard = client.mutex("a").with_ttl(secs(30)).lock().await.unwrap();
    let renewals = |outcome: &str| {
        let name = format!("leasehold_renewals_total{{backend=memory,outcome={outcome}}}");
        recording.take().get(&name).map_or(0.0, |count| count[0])
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        renewals("renewed"),
        watched.renewals.lock().unwrap().drain(..).count() as f64
    );
    watched.renewals_fail.store(true, SeqCst);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let failed = renewals("unavailable");
    assert!(failed > 1.0);
    watched.renewals_fail.store(false, SeqCst);
}

#[tokio::test(start_paused = true)]
async fn writes_of_records_count_by_their_outcome() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, _) = simulated();
    let guard = client.mutex("a").lock().await.unwrap();
    for _ in 0..2 {
        guard.write_record("value").await.unwrap();
    }
    // Refused before it is sent, so it is no write.
    let oversized = guard.write_record(vec![0; Record::MAX_LEN + 1]).await;
    assert_eq!(oversized.unwrap_err().kind(), ErrorKind::InvalidInput);
    let taken = recording.take();
    let writes: f64 = taken
        .iter()
        .filter(|(name, _)| name.starts_with("leasehold_record_writes_total"))
        .map(|(_, counts)| counts[0])
        .sum();
    let written = &taken["leasehold_record_writes_total{backend=memory,outcome=written}"];
    assert_eq!((written[0], writes), (2.0, 2.0));
}

#[tokio::test(start_paused = true)]
async fn only_terms_that_begin_are_counted() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, _) = simulated();
    let election = client.election("a");
    for _ in 0..2 {
        let term = election.campaign("value").await.unwrap();
        assert!(election.try_campaign("value").await.unwrap().is_none());
        term.resign().await.unwrap();
    }
    let taken = recording.take();
    assert_eq!(taken["leasehold_terms_total{backend=memory}"], [2.0]);
}

#[tokio::test(start_paused = true)]
async fn runs_of_scheduled_work_count_by_their_outcome() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, _) = simulated();
    let named = |name: &str| Occurrence::Named(name.to_owned());
    let once = client.once("a").with_at_most(Duration::from_secs(1));
    for decided in [false, true] {
        let turn = once.run(named("good"), async |_| Ok::<_, String>(())).await;
        assert_eq!(matches!(turn.unwrap(), Turn::Decided(_)), decided);
    }
    let failing = async |_| Err::<(), _>("broken");
    let turn = once.run(named("bad"), failing).await.unwrap();
    assert!(matches!(turn, Turn::Failed("broken")));
    let endless = async |_| std::future::pending::<Result<(), String>>().await;
    let turn = once.run(named("slow"), endless).await.unwrap();
    assert!(matches!(turn, Turn::Overtime));
    let taken = recording.take();
    let runs: Vec<_> = taken
        .iter()
        .filter(|(name, _)| name.starts_with("leasehold_once_runs_total"))
        .map(|(name, counts)| (name.as_str(), counts[0]))
        .collect();
    assert_eq!(
        runs,
        [
            (
                "leasehold_once_runs_total{backend=memory,outcome=failed}",
                1.0
            ),
            ("leasehold_once_runs_total{backend=memory,outcome=ok}", 1.0),
            (
                "leasehold_once_runs_total{backend=memory,outcome=overtime}",
                1.0
            ),
        ]
    );
}

/// Returns a quorum of in-memory nodes on one clock.
async fn quorum(votes: bool) -> (LockClient, [Arc<Flaky>; 3]) {
    let clock = Arc::new(TestClock::new());
    let nodes = ["node-a", "node-b", "node-c"].map(|name| Flaky::new(name, clock.clone(), votes));
    let quorum = QuorumBackend::open(nodes.iter().map(Flaky::member), QuorumConfig::new())
        .await
        .unwrap();
    (LockClient::builder(quorum).with_clock(clock).build(), nodes)
}

#[tokio::test(start_paused = true)]
async fn a_pair_of_a_quorum_counts_once_whatever_its_nodes_do() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, _) = quorum(true).await;
    client
        .mutex("a")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    settle().await;
    let taken = recording.take();
    let locks: BTreeMap<_, _> = taken
        .into_iter()
        .filter(|(name, _)| name.contains("_acquisitions_") || name.contains("_releases_"))
        .collect();
    expect(
        &locks,
        &[
            (
                "leasehold_acquisitions_total{backend=quorum,outcome=granted}",
                1.0,
            ),
            (
                "leasehold_releases_total{backend=quorum,outcome=freed}",
                1.0,
            ),
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn node_metrics_show_a_dead_node_down_and_later_up() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, nodes) = quorum(true).await;
    let pair = async || {
        client
            .mutex("a")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut taken = recording.take();
        taken.retain(|name, _| name.contains("_quorum_node_"));
        taken
    };
    let up = |c: f64| {
        [
            ("leasehold_quorum_node_up{node=node-a}", 1.0),
            ("leasehold_quorum_node_up{node=node-b}", 1.0),
            ("leasehold_quorum_node_up{node=node-c}", c),
        ]
    };
    expect(&pair().await, &up(1.0));
    nodes[2].down.store(true, SeqCst);
    let failures = (
        "leasehold_quorum_node_failures_total{node=node-c,kind=unavailable}",
        1.0,
    );
    let mut expected = vec![failures];
    expected.extend(up(0.0));
    for _ in 0..2 {
        expect(&pair().await, &expected);
    }
    nodes[2].down.store(false, SeqCst);
    expect(&pair().await, &up(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_took_a_second_round_trip_counts_as_written_back() {
    let clock = Arc::new(TestClock::new());
    let nodes = [(); 3].map(|()| Arc::new(MemoryBackend::with_clock(clock.clone())));
    let request = Request::new(LockKey::new("a").unwrap())
        .with_clock(clock.clone(), leasehold_core::ClockDrift::DEFAULT);
    // The token of one node is above those of the other nodes and above every clock.
    let ahead = VoteRequirements {
        epoch_required: false,
        largest_ttl: Duration::ZERO,
        token_floor: FencingToken::new(1 << 52),
    };
    let granted = Arc::clone(&nodes[0])
        .request_vote(request.clone(), ahead)
        .await
        .unwrap();
    let Attempt::Granted(lease) = granted else {
        panic!("it is free")
    };
    lease.release().await.unwrap();
    let members = nodes
        .iter()
        .map(|node| QuorumMember::Voting(Arc::clone(node) as _));
    let quorum = QuorumBackend::open(members, QuorumConfig::new())
        .await
        .unwrap();
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let client = LockClient::builder(quorum).with_clock(clock).build();
    client
        .mutex("a")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_eq!(
        recording.take()["leasehold_quorum_write_backs_total{backend=quorum}"],
        [1.0]
    );
}

/// Names and keys of locks are unbounded, so that no label may contain one.
#[tokio::test(start_paused = true)]
async fn no_label_has_a_lock_in_it() {
    let recording = Recording::new();
    let _recorded = metrics::set_default_local_recorder(&recording.0);
    let (client, _) = quorum(true).await;
    for number in 0..10 {
        client
            .mutex(format!("item/{number}"))
            .with_label("till 3")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    settle().await;
    let taken = recording.take();
    assert!(taken.len() > 5);
    assert!(
        taken
            .keys()
            .all(|name| !name.contains("item") && !name.contains("till")),
        "{taken:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn every_counter_is_there_from_the_start() {
    let recorder = DebuggingRecorder::new();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let clock = Arc::new(TestClock::new());
    let nodes = ["a", "b", "c"].map(|name| Flaky::new(name, clock.clone(), true));
    let quorum = QuorumBackend::open(nodes.iter().map(Flaky::member), QuorumConfig::new())
        .await
        .unwrap();
    let _client = LockClient::new(quorum);
    let mut counters: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, _, _, value) in recorder.snapshotter().snapshot().into_vec() {
        if matches!(value, DebugValue::Counter(0)) {
            let last = key.key().labels().last().unwrap().value().to_owned();
            counters
                .entry(key.key().name().to_owned())
                .or_default()
                .push(last);
        }
    }
    let numbers: Vec<_> = counters
        .iter()
        .map(|(name, labels)| (name.as_str(), labels.len()))
        .collect();
    assert_eq!(
        numbers,
        [
            ("leasehold_acquisitions_total", 15),
            ("leasehold_losses_total", 5),
            ("leasehold_once_runs_total", 15),
            ("leasehold_quorum_node_failures_total", 12),
            ("leasehold_quorum_write_backs_total", 1),
            ("leasehold_record_writes_total", 13),
            ("leasehold_releases_total", 15),
            ("leasehold_renewals_total", 13),
            ("leasehold_terms_total", 1),
        ]
    );
    assert!(counters["leasehold_losses_total"].contains(&String::from("expired")));
}

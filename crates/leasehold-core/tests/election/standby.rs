//! Candidates on standby.

use std::{
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use leasehold_core::ErrorKind;
use tokio::time::timeout;

use crate::{
    SOON, leader,
    scripted::{Script, Scripted, record},
    some,
    support::{settle, two_processes},
};

#[tokio::test(start_paused = true)]
async fn candidate_on_standby_waits_for_a_vacancy() {
    let (one, other) = two_processes();
    let standby = other.election("e").with_standby(Duration::from_secs(10));
    let campaign = tokio::spawn({
        let standby = standby.clone();
        async move { standby.campaign("standby").await }
    });
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(leader(&one).await, None, "not before the delay");
    // A preferred candidate comes in time, again and again.
    for _ in 0..3 {
        let term = one.election("e").campaign("preferred").await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        term.resign().await.unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(leader(&one).await, None, "not before the delay");
    }
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert_eq!(leader(&one).await, some("standby"));
    drop(term);
}

#[tokio::test(start_paused = true)]
async fn candidate_on_standby_leaves_the_queue_for_another() {
    let (one, other) = two_processes();
    // The lock is held, but not by a leader: the standby campaigns.
    let guard = one.mutex("e").lock().await.unwrap();
    let standby = other.election("e").with_standby(Duration::from_secs(5));
    let campaign = tokio::spawn(async move { standby.campaign("standby").await });
    let queued = async || !one.inspect("e").await.unwrap().waiters.is_empty();
    timeout(SOON, async {
        while !queued().await {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .expect("the candidate waits for the lock");
    // The holder shows a value, and is the leader.
    guard.write_record("holder").await.unwrap();
    timeout(SOON, async {
        while queued().await {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .expect("the candidate left the queue");
    drop(guard);
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert!(term.is_held());
}

/// A backend with proposals shows the value of a candidate as soon as it grants the lock.
#[tokio::test(start_paused = true)]
async fn candidate_on_standby_does_not_leave_for_itself() {
    let script = Script {
        proposals: true,
        answer_takes: Duration::from_millis(500),
        readings: Mutex::new(vec![None]),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let standby = client.election("e").with_standby(Duration::from_secs(5));
    let campaign = tokio::spawn(async move { standby.campaign("value").await });
    let granted = async {
        while script.proposed.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, granted)
        .await
        .expect("the candidate campaigns");
    *script.readings.lock().unwrap() = vec![record(1, 1)];
    script.changed.notify_waiters();
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert!(term.is_held());
    assert_eq!(
        script.proposed.lock().unwrap().len(),
        1,
        "it campaigned once"
    );
}

#[tokio::test(start_paused = true)]
async fn timeout_of_a_standby_names_whether_the_backend_answered() {
    let (client, script) = Scripted::client(Script::default());
    let standby = client.election("e").with_standby(SOON);
    let refused = standby
        .campaign_timeout("value", Duration::from_secs(5))
        .await;
    assert!(refused.unwrap().is_none());
    script.failing_reads.store(usize::MAX, SeqCst);
    let error = standby
        .campaign_timeout("value", Duration::from_secs(5))
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unavailable);
    script.failing_reads.store(0, SeqCst);
    assert!(
        standby.try_campaign("value").await.unwrap().is_some(),
        "an attempt is made at once"
    );
}

#[tokio::test(start_paused = true)]
async fn unreachable_backend_is_no_vacancy() {
    let (client, script) = Scripted::client(Script::default());
    let standby = client.election("e").with_standby(Duration::from_secs(5));
    let campaign = tokio::spawn(async move { standby.campaign("value").await });
    settle().await;
    script.failing_reads.store(usize::MAX, SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(
        script.proposed.lock().unwrap().is_empty(),
        "it does not campaign"
    );
    script.failing_reads.store(0, SeqCst);
    let term = timeout(SOON, campaign).await.unwrap().unwrap();
    assert!(term.is_ok(), "it campaigns once the backend answers");
}

/// A delay may be shorter than the round trip of a read.
#[tokio::test(start_paused = true)]
async fn standby_without_a_delay_does_not_read_in_a_loop() {
    let (client, script) = Scripted::client(Script::default());
    let standby = client.election("e").with_standby(Duration::ZERO);
    // Another leads between the first answer of the observer and the next read.
    *script.readings.lock().unwrap() = vec![None, record(1, 1)];
    let campaign = tokio::spawn(async move { standby.campaign("standby").await });
    let reads = async || {
        let before = script.calls.load(SeqCst);
        // On paused time, a loop of reads lets no time pass.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let at_once = script.calls.load(SeqCst) - before;
        assert!(at_once < 10, "{at_once} reads at once");
        tokio::time::sleep(Duration::from_secs(60)).await;
        script.calls.load(SeqCst) - before
    };
    let beside_a_leader = reads().await;
    assert!(beside_a_leader < 200, "{beside_a_leader} reads in a minute");
    assert!(
        script.proposed.lock().unwrap().is_empty(),
        "there is a leader"
    );
    // The backend fails at once, again and again.
    script.failing_reads.store(usize::MAX, SeqCst);
    script.changed.notify_waiters();
    let in_an_outage = reads().await;
    assert!(in_an_outage < 200, "{in_an_outage} reads in a minute");
    script.failing_reads.store(0, SeqCst);
    script.readings.lock().unwrap().clear();
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert!(term.is_held());
}

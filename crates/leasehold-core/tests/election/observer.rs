//! Observers of the leaders and their values.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use leasehold_core::ErrorKind;
use tokio::time::timeout;

use crate::{
    next,
    scripted::{Script, Scripted, record},
    some,
    support::two_processes,
    value,
};

#[tokio::test(start_paused = true)]
async fn observer_sees_values_vacancies_and_new_leaders() {
    let (one, other) = two_processes();
    let mut leaders = other.election("e").observe();
    assert_eq!(next(&mut leaders).await, None);
    let term = one.election("e").campaign("a").await.unwrap();
    assert_eq!(next(&mut leaders).await, some("a"));
    term.proclaim("b").await.unwrap();
    assert_eq!(next(&mut leaders).await, some("b"));
    term.resign().await.unwrap();
    assert_eq!(next(&mut leaders).await, None);
    let _term = one.election("e").campaign("c").await.unwrap();
    assert_eq!(next(&mut leaders).await, some("c"));
    let nothing = timeout(Duration::from_secs(60), leaders.next()).await;
    assert!(nothing.is_err(), "the same leader is not returned again");
    let mut stream = other.election("e").observe().into_stream();
    assert_eq!(value(stream.next().await.unwrap().unwrap()), some("c"));
    other.close().await.unwrap();
    assert_eq!(
        stream.next().await.unwrap().unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert!(
        stream.next().await.is_none(),
        "it ends after the first error"
    );
}

#[tokio::test(start_paused = true)]
async fn observer_skips_an_older_leader_after_a_newer_one() {
    let (client, script) = Scripted::client(Script::default());
    *script.readings.lock().unwrap() = vec![
        record(5, 2),
        record(4, 1), // an older leader
        record(4, 2), // an older value
        None,
        record(4, 1), // an older leader after a vacancy
        record(6, 2),
        record(1, 3),
    ];
    let changed = Arc::clone(&script.changed);
    let changing = async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            changed.notify_waiters();
        }
    };
    let mut leaders = client.election("e").observe();
    let observing = async {
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(next(&mut leaders).await);
        }
        seen
    };
    let seen = tokio::select! {
        seen = observing => seen,
        () = changing => unreachable!("it is repeated for ever"),
    };
    assert_eq!(seen, [some("2.5"), None, some("2.6"), some("3.1")]);
}

#[tokio::test(start_paused = true)]
async fn observer_believes_a_backend_that_lost_its_data() {
    let (client, script) = Scripted::client(Script::default());
    *script.readings.lock().unwrap() = vec![record(5, 7), record(1, 1)];
    let mut leaders = client.election("e").observe();
    assert_eq!(next(&mut leaders).await, some("7.5"));
    script.changed.notify_waiters();
    assert_eq!(next(&mut leaders).await, some("1.1"));
    // The first leader of the new data is now the newest.
    *script.readings.lock().unwrap() = vec![record(2, 1)];
    script.changed.notify_waiters();
    assert_eq!(next(&mut leaders).await, some("1.2"));
}

/// A caller that selects among several futures may poll the observer again after a long time.
#[tokio::test(start_paused = true)]
async fn observer_reads_again_before_it_shows_an_older_leader() {
    let (client, script) = Scripted::client(Script {
        yields: 1,
        ..Script::default()
    });
    *script.readings.lock().unwrap() = vec![record(5, 7)];
    let mut leaders = client.election("e").observe();
    assert_eq!(next(&mut leaders).await, some("7.5"));
    // A late answer shows an older leader.
    *script.readings.lock().unwrap() = vec![record(1, 1)];
    script.changed.notify_waiters();
    let nothing = timeout(Duration::from_secs(1), leaders.next()).await;
    assert!(nothing.is_err(), "an older leader is not returned at once");
    *script.readings.lock().unwrap() = vec![record(6, 7)];
    script.changed.notify_waiters();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(next(&mut leaders).await, some("7.6"));
}

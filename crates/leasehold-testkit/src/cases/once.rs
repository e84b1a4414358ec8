//! Work that runs once per occurrence, over the locks and the records of a backend.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use leasehold_core::once::{Occurrence, Retry, Run, RunState, Turn};
use tokio::sync::Notify;

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{client, key, must},
};

const CLIENTS: usize = 4;
const OCCURRENCES: u64 = 6;
/// The first client to begin this occurrence vanishes.
const CUT_SHORT: u64 = 3;

/// The instant of an occurrence, long ago, so that no clock matters.
fn instant(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number)
}

/// The begins and the ends of the work of each occurrence.
#[derive(Default)]
struct Log {
    begins: [u32; OCCURRENCES as usize],
    ends: [u32; OCCURRENCES as usize],
    working: Option<u64>,
}

/// Checks that four clients, which all ask for the same occurrences, complete each of them exactly
/// once and never two at a time, although one of the clients vanishes at work.
pub async fn once_decides_each_occurrence_once(fixture: &dyn BackendFixture) {
    let key = key(fixture, "once");
    let log = Mutex::new(Log::default());
    let log = || log.lock().unwrap_or_else(PoisonError::into_inner);
    let clients = join_all((0..CLIENTS).map(|_| client(fixture))).await;
    let replicas = clients.iter().map(async |client| {
        let once = client.once(&key).with_retry(Retry {
            crashes: 1,
            ..Retry::never()
        });
        let vanishes = Notify::new();
        for number in 0..OCCURRENCES {
            let at = number as usize;
            let work = async |run: Run| {
                {
                    let mut log = log();
                    let working = log.working.replace(number);
                    assert_eq!(working, None, "one occurrence runs at a time");
                    log.begins[at] += 1;
                    assert_eq!(
                        log.begins[at],
                        run.attempt(),
                        "each attempt is recorded before it begins"
                    );
                }
                if number == CUT_SHORT && run.attempt() == 1 {
                    log().working = None;
                    vanishes.notify_one();
                    return pending::<Result<(), Infallible>>().await;
                }
                tokio::task::yield_now().await;
                let mut log = log();
                log.ends[at] += 1;
                log.working = None;
                Ok(())
            };
            let turn = tokio::select! {
                turn = once.run(instant(number), work) => must(turn, "a turn is answered"),
                () = vanishes.notified() => return false,
            };
            assert!(
                matches!(turn, Turn::Ran(()) | Turn::Decided(_)),
                "an occurrence is run or decided: {turn:?}"
            );
        }
        true
    });
    let stayed = join_all(replicas).await;
    let vanished = stayed.iter().filter(|stayed| !**stayed).count();
    assert_eq!(vanished, 1, "one client vanished at work");
    for number in 0..OCCURRENCES {
        let (at, log) = (number as usize, log());
        assert_eq!(log.ends[at], 1, "occurrence {number} is completed once");
        let begins = 1 + u32::from(number == CUT_SHORT);
        assert_eq!(
            log.begins[at], begins,
            "occurrence {number} begins no more often than it must"
        );
    }

    let late = client(fixture).await;
    let history = must(late.once(&key).history().await, "the history is read");
    assert_eq!(
        history.decided_through,
        Some(instant(OCCURRENCES - 1)),
        "everything is decided"
    );
    let runs: Vec<_> = history
        .runs
        .iter()
        .map(|run| (run.occurrence.clone(), run.state, run.crashes))
        .collect();
    let expected: Vec<_> = (0..OCCURRENCES)
        .rev()
        .map(|number| {
            let crashes = u32::from(number == CUT_SHORT);
            (Occurrence::At(instant(number)), RunState::Ok, crashes)
        })
        .collect();
    assert_eq!(runs, expected, "the history has each run, the newest first");
}

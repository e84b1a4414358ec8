//! Runners of scheduled work that are cut off in each step.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
};

use leasehold_core::{
    ErrorKind, LockClient,
    once::{Once, Retry, RunState, Turn},
};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    steps::{is_a_fault, millis},
};
use tokio::sync::Notify;

use crate::{
    fixture::Fixture,
    support::{cut_at_each, locked, nothing_left, soon},
};

const OCCURRENCE: &str = "2031-04";

/// Work that notices a second runner at the same time.
#[derive(Default)]
struct Work {
    running: AtomicBool,
    begun: AtomicU32,
}

/// The end of a run, also of one that is cancelled.
struct Running<'a>(&'a Work);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, SeqCst);
    }
}

impl Work {
    fn begin(&self) -> Running<'_> {
        let runs_already = self.running.swap(true, SeqCst);
        assert!(!runs_already, "two runs at a time");
        self.begun.fetch_add(1, SeqCst);
        Running(self)
    }

    async fn run(&self) -> Result<(), Infallible> {
        let _running = self.begin();
        tokio::time::sleep(millis(20)).await;
        Ok(())
    }
}

fn once(client: &LockClient, key: &str) -> Once {
    let retry = Retry {
        crashes: 3,
        ..Retry::never()
    };
    client.once(key).with_retry(retry)
}

/// Verifies that the occurrence was completed, in the last of its attempts.
async fn is_completed(near: &LockClient, key: &str, work: &Work) {
    let history = soon(key, once(near, key).history()).await.unwrap();
    let [run] = history.runs.as_slice() else {
        panic!("{key}: {history:?}");
    };
    assert_eq!(run.state, RunState::Ok, "{key}");
    let begun = work.begun.load(SeqCst);
    // An attempt did not begin if its record was not confirmed.
    assert!(
        (1..=run.attempt).contains(&begun),
        "{key}: {run:?}, begun {begun} times"
    );
}

/// Cuts the connections of a runner, and lets another one ask. Returns whether the point was
/// reached.
async fn cut_within(fixture: &dyn Fixture, near: &LockClient, cut: (Direction, u64)) -> bool {
    let (route, key, work) = (fixture.route(), format!("{cut:?}"), Work::default());
    let far = fixture.client_at(&route.url).await;
    // A busy machine may take longer to open a session than the default timeout.
    locked(&far, &format!("warm {key}"))
        .await
        .release()
        .await
        .unwrap();
    route.each(|proxy| proxy.cut_after_chunks(cut.0, cut.1));
    let first = once(&far, &key);
    let first = first.run(OCCURRENCE, async |_| work.run().await);
    let is_recorded = match soon(&key, first).await {
        Ok(Turn::Ran(())) => true,
        Ok(other) => panic!("{key}: {other:?} without another runner"),
        Err(error) => {
            assert!(is_a_fault(error.kind()), "{key}: {error:?}");
            false
        }
    };
    let next = once(near, &key);
    let next = next.run(OCCURRENCE, async |_| work.run().await);
    match soon(&key, next).await.unwrap() {
        // The end was recorded, even if its answer was lost.
        Turn::Decided(_) => assert_eq!(work.begun.load(SeqCst), 1, "{key}"),
        Turn::Ran(()) => assert!(!is_recorded, "{key}: it runs again"),
        other => panic!("{key}: {other:?}"),
    }
    is_completed(near, &key, &work).await;
    let tripped = route.proxies.iter().any(|proxy| proxy.counters().trips > 0);
    // The servers have few connections.
    drop(far.close().await);
    tripped
}

pub(crate) async fn run_that_is_cut_off_anywhere_is_completed_once(fixture: &mut dyn Fixture) {
    let (near, fixture) = (fixture.client().await, &*fixture);
    cut_at_each(fixture, (12, 8), |cut| cut_within(fixture, &near, cut)).await;
}

/// Verifies that the work of a runner that is cut off is cancelled before another one runs, and
/// that nothing of the former changes the history once the route heals.
pub(crate) async fn cut_off_runner_is_cancelled_before_another_runs(fixture: &mut dyn Fixture) {
    let (route, work) = (fixture.route(), Arc::<Work>::default());
    let (far, near) = (fixture.client_at(&route.url).await, fixture.client().await);
    let (begun, stuck) = (Arc::<Notify>::default(), once(&far, "k"));
    let (of_stuck, has_begun) = (Arc::clone(&work), Arc::clone(&begun));
    let running = tokio::spawn(async move {
        let work = |_| async move {
            let _running = of_stuck.begin();
            has_begun.notify_one();
            std::future::pending::<Result<(), Infallible>>().await
        };
        stuck.run_with(OCCURRENCE, work).await
    });
    soon("the work begins", begun.notified()).await;
    // The proxy passes later requests on once the route heals.
    route.each(|proxy| proxy.hold(Direction::ClientToServer));
    let next = once(&near, "k");
    let next = next.run(OCCURRENCE, async |_| work.run().await);
    let turn = soon("another runner takes over", next).await.unwrap();
    assert!(matches!(turn, Turn::Ran(())), "{turn:?}");
    let lost = soon("the first runner ends", running).await.unwrap();
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Lost);
    route.each(Proxy::heal);
    // Earlier requests have arrived before this one.
    locked(&far, "other").await.release().await.unwrap();
    is_completed(&near, "k", &work).await;
    assert_eq!(work.begun.load(SeqCst), 2);
    nothing_left(fixture);
}

//! The stream that all watches of a backend travel on.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak},
    time::Duration,
};

use etcd_client::{EventType, WatchRequestSender, WatchResponse, WatchResponseStream};
use leasehold_core::{ErrorKind, Result, backend::support::contained};

use super::{WaiterRegistry, watched::Watched};
use crate::{
    connection::Cluster,
    error::{self, Effect},
};

const SWEEP: Duration = Duration::from_secs(10);
/// Before a stream that broke is opened again; doubled with each failure in a row, up to the
/// longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So many failures in a row are a warning: about three seconds without a stream.
const FAILURES: u32 = 6;

/// Opens the stream again and again, as long as anything is watched.
pub(super) async fn run(watches: Weak<WaiterRegistry>) {
    let mut failures = 0;
    loop {
        let Some(watches) = watches.upgrade() else {
            return;
        };
        let Some(wanted) = watches.to_watch() else {
            return;
        };
        let served = contained(serve(&watches, wanted, &mut failures)).await;
        for watched in watches.all() {
            watched.became_cold();
        }
        drop(watches);
        if let Err(error) = served {
            failures += 1;
            if failures.is_multiple_of(FAILURES) {
                tracing::warn!(
                    target: "leasehold", %error, failures,
                    "the watch stream ends as soon as it is opened: waiters look every 100 ms instead"
                );
            } else {
                tracing::debug!(target: "leasehold", %error, "watch stream ended");
            }
        }
        tokio::time::sleep((PAUSE * (1 << failures.min(10))).min(LONGEST_PAUSE)).await;
    }
}

/// Serves all watches on one stream, until it breaks. Sets `failures` to zero once a watch stands.
async fn serve(
    watches: &Arc<WaiterRegistry>,
    wanted: Vec<Arc<Watched>>,
    failures: &mut u32,
) -> Result<()> {
    let cluster = &watches.cluster;
    let Some(first) = wanted.first() else {
        return Ok(());
    };
    let moved = cluster.moved.notified();
    let opened = cluster.call("watch", Effect::None, cluster.config.timeout, |live| {
        let (mut watch, options, start) =
            (live.watch.clone(), first.options(), first.directory.start());
        async move { watch.watch(start, Some(options)).await }
    });
    let (mut asks, mut answers) = opened.await?.split();
    // By id: those that were asked for on this stream.
    let mut asked: HashMap<i64, Arc<Watched>> = HashMap::from([(first.id, Arc::clone(first))]);
    for watched in &wanted[1..] {
        ask(cluster, &mut asks, watched).await?;
        asked.insert(watched.id, Arc::clone(watched));
    }
    let mut sweep = tokio::time::interval(SWEEP);
    let mut moved = std::pin::pin!(moved);
    loop {
        tokio::select! {
            answer = next(&mut answers, cluster) => {
                let answer = answer?;
                if answer.created() && answer.canceled() {
                    // The stream has the token that it was opened with, which no longer opens a
                    // watch.
                    cluster.authenticate("watch").await?;
                    let why = format!("the server refused a watch: {}", answer.cancel_reason());
                    return Err(error::plain(ErrorKind::Denied, "watch", why));
                }
                if answer.created() {
                    *failures = 0;
                }
                take(&mut asked, &answer);
            }
            () = watches.wanted.notified() => {
                let Some(wanted) = watches.to_watch_on_stream() else { return Ok(()) };
                for watched in wanted {
                    if let Entry::Vacant(entry) = asked.entry(watched.id) {
                        ask(cluster, &mut asks, &watched).await?;
                        entry.insert(watched);
                    }
                }
            }
            _ = sweep.tick() => {
                for id in watches.sweep() {
                    if asked.remove(&id).is_some() {
                        drop(tokio::time::timeout(cluster.config.timeout, asks.cancel(id)).await);
                    }
                }
                if asked.is_empty() {
                    return Ok(());
                }
            }
            () = &mut moved => return Ok(()),
        }
    }
}

async fn ask(cluster: &Cluster, asks: &mut WatchRequestSender, watched: &Watched) -> Result<()> {
    let sent = asks.watch(watched.directory.start(), Some(watched.options()));
    match tokio::time::timeout(cluster.config.timeout, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error::of_driver(
            error,
            "watch",
            Effect::None,
            &cluster.endpoint(),
        )),
        Err(_elapsed) => Err(error::timed_out(
            "watch",
            Effect::None,
            &cluster.endpoint(),
            cluster.config.timeout,
        )),
    }
}

async fn next(answers: &mut WatchResponseStream, cluster: &Cluster) -> Result<WatchResponse> {
    match answers.message().await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(error::protocol("watch")),
        Err(error) => Err(error::of_driver(
            error,
            "watch",
            Effect::None,
            &cluster.endpoint(),
        )),
    }
}

fn take(asked: &mut HashMap<i64, Arc<Watched>>, answer: &WatchResponse) {
    let Some(watched) = asked.get(&answer.watch_id()).cloned() else {
        return;
    };
    if answer.canceled() {
        // Compacted away from under it, or a member without a leader: asked for again by the next
        // that waits.
        asked.remove(&answer.watch_id());
        watched.became_cold();
        return;
    }
    if answer.created() {
        watched.became_warm();
    }
    for event in answer.events() {
        if event.event_type() == EventType::Delete
            && let Some(kv) = event.kv()
        {
            watched.deleted(kv.key());
        }
    }
}

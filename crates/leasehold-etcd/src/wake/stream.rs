//! The stream that all watches of a backend travel on.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak},
    time::Duration,
};

use etcd_client::{EventType, WatchRequestSender, WatchResponse, WatchResponseStream};
use leasehold_core::Result;

use super::{Watches, watched::Watched};
use crate::{
    connection::Cluster,
    error::{self, Effect},
};

const SWEEP: Duration = Duration::from_secs(10);
/// Before a stream that broke is opened again.
const PAUSE: Duration = Duration::from_millis(50);

/// Opens the stream again and again, as long as anything is watched.
pub(super) async fn run(watches: Weak<Watches>) {
    loop {
        let Some(watches) = watches.upgrade() else { return };
        let Some(wanted) = watches.to_watch() else { return };
        if let Err(error) = serve(&watches, wanted).await {
            tracing::debug!(target: "leasehold", %error, "watch stream ended");
        }
        for watched in watches.all() {
            watched.became_cold();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn serve(watches: &Arc<Watches>, wanted: Vec<Arc<Watched>>) -> Result<()> {
    let cluster = &watches.cluster;
    let Some(first) = wanted.first() else { return Ok(()) };
    let moved = cluster.moved.notified();
    let opened = cluster.call("watch", Effect::None, cluster.config.timeout, |live| {
        let (mut watch, options, start) = (live.watch.clone(), first.options(), first.directory.start());
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
            answer = next(&mut answers, cluster) => take(&mut asked, &answer?),
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
        Ok(Err(error)) => Err(error::of_driver(error, "watch", Effect::None, &cluster.endpoint())),
        Err(_elapsed) => Err(error::timed_out("watch", Effect::None, &cluster.endpoint())),
    }
}

async fn next(answers: &mut WatchResponseStream, cluster: &Cluster) -> Result<WatchResponse> {
    match answers.message().await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(error::protocol("watch")),
        Err(error) => Err(error::of_driver(error, "watch", Effect::None, &cluster.endpoint())),
    }
}

fn take(asked: &mut HashMap<i64, Arc<Watched>>, answer: &WatchResponse) {
    let Some(watched) = asked.get(&answer.watch_id()).cloned() else { return };
    if answer.canceled() {
        // Compacted away from under it, or a member without a leader: asked for again by the next that waits.
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

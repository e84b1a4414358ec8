//! The watch stream that all waiters of a backend share.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak},
    time::Duration,
};

use etcd_client::{EventType, WatchRequestSender, WatchResponse, WatchResponseStream};
use leasehold_core::{
    ErrorKind, Result,
    backend::support::{contained, supervised},
};

use super::{
    WaiterRegistry,
    lock_watch::{LockWatch, Watched},
};
use crate::{
    connection::Cluster,
    error::{self, ERRORS, SideEffect},
};

const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The delay before a broken stream is opened again. It doubles with each failure in a row, up to
/// the maximum.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);
/// The number of failures in a row that cause a warning: about three seconds without a stream.
const FAILURES_PER_WARNING: u32 = 6;

impl WaiterRegistry {
    /// Starts the task of the stream, unless it runs.
    pub(super) fn start(self: &Arc<Self>) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.running, true) {
            // The task ends when no lock is watched, or with the backend.
            let registry = Arc::downgrade(self);
            drop(tokio::spawn(supervised(move || {
                run(Weak::clone(&registry))
            })));
        }
        drop(state);
        self.wanted.notify_one();
    }
}

/// Opens the stream again whenever it breaks, as long as a lock is watched.
async fn run(registry: Weak<WaiterRegistry>) {
    let mut failures = 0;
    loop {
        let Some(registry) = registry.upgrade() else {
            return;
        };
        let Some(wanted) = registry.to_watch() else {
            return;
        };
        let served = contained(serve(&registry, wanted, &mut failures)).await;
        for watch in registry.all() {
            watch.on_lost();
        }
        drop(registry);
        if let Err(error) = served {
            failures += 1;
            if failures.is_multiple_of(FAILURES_PER_WARNING) {
                tracing::warn!(
                    target: "leasehold", %error, failures,
                    "the watch stream ends as soon as it is opened; waiters poll every 100 ms instead"
                );
            } else {
                tracing::debug!(target: "leasehold", %error, "the watch stream ended");
            }
        }
        tokio::time::sleep((RETRY_DELAY * (1 << failures.min(10))).min(MAX_RETRY_DELAY)).await;
    }
}

/// Serves all watches on one stream until it breaks. Sets `failures` to zero once a watch is
/// established.
async fn serve(
    registry: &Arc<WaiterRegistry>,
    wanted: Vec<Arc<LockWatch>>,
    failures: &mut u32,
) -> Result<()> {
    let cluster = &registry.cluster;
    let Some(first) = wanted.first() else {
        return Ok(());
    };
    let member_changed = cluster.member_changed.notified();
    let opened = cluster.call(
        "watch",
        SideEffect::None,
        cluster.config.timeout,
        |channel| {
            let (mut client, options, start) = (
                channel.watch.clone(),
                first.options(),
                first.watched.start(),
            );
            async move { client.watch(start, Some(options)).await }
        },
    );
    let (mut requests, mut answers) = opened.await?.split();
    // The watches of this stream, by their ids.
    let mut requested: HashMap<i64, Arc<LockWatch>> =
        HashMap::from([(first.id, Arc::clone(first))]);
    for watch in &wanted[1..] {
        request_watch(cluster, &mut requests, watch).await?;
        requested.insert(watch.id, Arc::clone(watch));
    }
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    let mut member_changed = std::pin::pin!(member_changed);
    loop {
        tokio::select! {
            answer = next(&mut answers, cluster) => {
                let answer = answer?;
                if answer.created() && answer.canceled() {
                    // The stream was opened with a token that no longer permits a watch.
                    cluster.authenticate("watch").await?;
                    let message = format!("the server refused a watch: {}", answer.cancel_reason());
                    return Err(ERRORS.error(ErrorKind::Denied, "watch", message));
                }
                if answer.created() {
                    *failures = 0;
                }
                handle_response(&mut requested, &answer);
            }
            () = registry.wanted.notified() => {
                let Some(wanted) = registry.to_watch_on_stream() else { return Ok(()) };
                for watch in wanted {
                    if let Entry::Vacant(entry) = requested.entry(watch.id) {
                        request_watch(cluster, &mut requests, &watch).await?;
                        entry.insert(watch);
                    }
                }
            }
            _ = sweep.tick() => {
                for id in registry.sweep() {
                    if requested.remove(&id).is_some() {
                        drop(tokio::time::timeout(cluster.config.timeout, requests.cancel(id)).await);
                    }
                }
                if requested.is_empty() {
                    return Ok(());
                }
            }
            () = &mut member_changed => return Ok(()),
        }
    }
}

async fn request_watch(
    cluster: &Cluster,
    requests: &mut WatchRequestSender,
    watch: &LockWatch,
) -> Result<()> {
    let sent = requests.watch(watch.watched.start(), Some(watch.options()));
    match tokio::time::timeout(cluster.config.timeout, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error::from_driver(
            error,
            "watch",
            SideEffect::None,
            &cluster.endpoint(),
        )),
        Err(_elapsed) => Err(error::timed_out(
            "watch",
            SideEffect::None,
            &cluster.endpoint(),
            cluster.config.timeout,
        )),
    }
}

async fn next(answers: &mut WatchResponseStream, cluster: &Cluster) -> Result<WatchResponse> {
    match answers.message().await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(ERRORS.unexpected("watch")),
        Err(error) => Err(error::from_driver(
            error,
            "watch",
            SideEffect::None,
            &cluster.endpoint(),
        )),
    }
}

fn handle_response(requested: &mut HashMap<i64, Arc<LockWatch>>, answer: &WatchResponse) {
    let Some(watch) = requested.get(&answer.watch_id()).cloned() else {
        return;
    };
    if answer.canceled() {
        // The revision was compacted, or the member has no leader. The next waiter requests the
        // watch again.
        requested.remove(&answer.watch_id());
        watch.on_lost();
        return;
    }
    if answer.created() {
        watch.on_created();
    }
    for event in answer.events() {
        // The server was asked for no writes, if only deletions are watched.
        let reported =
            event.event_type() == EventType::Delete || !matches!(watch.watched, Watched::Lock(_));
        if let Some(kv) = event.kv().filter(|_| reported) {
            watch.changed(kv.key());
        }
    }
}

//! One watch stream for all waiters of a backend.
//!
//! A watch that starts at a past revision is served every 100 ms only, so watches start at the present and are kept warm:
//! whoever waits makes sure that the watch on its lock stands, *then* reads whom it waits for, then waits. Each contended
//! lock has a watch of its own on the stream, for deletions under its directory: a busy namespace sends us nothing
//! that nobody waits for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{EventType, WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use leasehold_core::{BoxFuture, Result};
use tokio::{sync::Notify, time::Instant};

use crate::{
    connection::Cluster,
    error::{self, Effect},
    keys::{Directory, EtcdKey},
};

/// How long the watch on a lock is kept after its last waiter: the next one then need not wait for it.
const KEEP_WARM: Duration = Duration::from_secs(30);
const SWEEP: Duration = Duration::from_secs(10);
/// Before a stream that broke is opened again.
const PAUSE: Duration = Duration::from_millis(50);

/// All watches of a backend.
#[derive(Debug)]
pub(crate) struct Watches {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    /// A watch is wanted that the stream does not have yet.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_directory: HashMap<Directory, Arc<Watched>>,
    next: i64,
    running: bool,
    closed: bool,
}

/// The watch on one lock.
#[derive(Debug)]
struct Watched {
    id: i64,
    directory: Directory,
    users: AtomicUsize,
    state: Mutex<Waiters>,
    /// How much was missed or seen: whoever reads before and after knows whether it missed something.
    epoch: AtomicU64,
    warmed: Notify,
}

#[derive(Debug, Default)]
struct Waiters {
    asked: bool,
    warm: bool,
    idle_since: Option<Instant>,
    next: u64,
    by_key: HashMap<EtcdKey, Vec<(u64, Arc<Notify>)>>,
    /// Those who wait for any change.
    any: Vec<(u64, Arc<Notify>)>,
}

/// A use of the watch on one lock; it is kept while there is one, and a little longer.
#[derive(Debug)]
pub(crate) struct Watching {
    watches: Arc<Watches>,
    watched: Arc<Watched>,
}

/// What was missed until now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch(u64);

impl Watches {
    pub(crate) fn new(cluster: &Arc<Cluster>) -> Arc<Self> {
        Arc::new(Self { cluster: Arc::clone(cluster), state: Mutex::default(), wanted: Notify::new() })
    }

    /// Uses the watch on this lock. Costs nothing until [`Watching::warm`].
    pub(crate) fn on(self: &Arc<Self>, directory: &Directory) -> Watching {
        let mut state = self.lock();
        let watched = match state.by_directory.get(directory) {
            Some(watched) => Arc::clone(watched),
            None => {
                state.next += 1;
                let watched = Arc::new(Watched::new(state.next, directory.clone()));
                state.by_directory.insert(directory.clone(), Arc::clone(&watched));
                watched
            }
        };
        watched.users.fetch_add(1, Ordering::AcqRel);
        drop(state);
        Watching { watches: Arc::clone(self), watched }
    }

    /// Ends the stream.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wanted.notify_one();
    }

    fn start(self: &Arc<Self>) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.running, true) {
            // Ends when nothing is watched, or with the backend.
            drop(tokio::spawn(run(Arc::downgrade(self))));
        }
        drop(state);
        self.wanted.notify_one();
    }

    fn all(&self) -> Vec<Arc<Watched>> {
        self.lock().by_directory.values().cloned().collect()
    }

    /// Forgets the watches that nobody has used for a while; their ids.
    fn sweep(&self) -> Vec<i64> {
        let now = Instant::now();
        let mut ids = Vec::new();
        self.lock().by_directory.retain(|_, watched| {
            let idle = watched.users.load(Ordering::Acquire) == 0
                && watched.lock().idle_since.is_none_or(|since| now.duration_since(since) >= KEEP_WARM);
            if idle {
                ids.push(watched.id);
            }
            !idle
        });
        ids
    }

    /// What to watch, or `None`, and the task ends.
    fn to_watch(&self) -> Option<Vec<Arc<Watched>>> {
        let mut state = self.lock();
        let wanted: Vec<_> = state.by_directory.values().filter(|watched| watched.lock().asked).cloned().collect();
        if wanted.is_empty() || state.closed {
            state.running = false;
            return None;
        }
        Some(wanted)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watching {
    /// Makes sure that the watch stands: what is deleted after this has returned is told.
    pub(crate) async fn warm(&self, patience: Duration) -> Result<()> {
        if self.watched.lock().warm {
            return Ok(());
        }
        let warmed = async {
            loop {
                let mut warmed = std::pin::pin!(self.watched.warmed.notified());
                warmed.as_mut().enable();
                {
                    let mut state = self.watched.lock();
                    if state.warm {
                        return;
                    }
                    state.asked = true;
                }
                self.watches.start();
                warmed.await;
            }
        };
        tokio::time::timeout(patience, warmed)
            .await
            .map_err(|_elapsed| error::timed_out("watch", Effect::None, &self.watches.cluster.endpoint()))
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.watched.epoch.load(Ordering::Acquire))
    }

    /// Completes when one of these keys is gone, or something may have been missed since `before`.
    pub(crate) fn gone(&self, keys: Vec<EtcdKey>, before: Epoch) -> BoxFuture<'static, ()> {
        self.arm(Some(keys), before)
    }

    /// Completes when anybody has left since `before`, or something may have been missed.
    pub(crate) fn changed(&self, before: Epoch) -> BoxFuture<'static, ()> {
        self.arm(None, before)
    }

    fn arm(&self, keys: Option<Vec<EtcdKey>>, before: Epoch) -> BoxFuture<'static, ()> {
        let notify = Arc::new(Notify::new());
        let id = {
            let mut waiters = self.watched.lock();
            waiters.next += 1;
            let id = waiters.next;
            match &keys {
                None => waiters.any.push((id, Arc::clone(&notify))),
                Some(keys) => {
                    for key in keys {
                        waiters.by_key.entry(key.clone()).or_default().push((id, Arc::clone(&notify)));
                    }
                }
            }
            id
        };
        if self.epoch().0 != before.0 {
            notify.notify_one();
        }
        let armed = Armed { watched: Arc::clone(&self.watched), keys, id, notify };
        Box::pin(async move { armed.notify.notified().await })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watched.lock().idle_since = Some(Instant::now());
        if self.watched.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut state = self.watches.lock();
            // Was never asked of the server: nothing to keep warm.
            if self.watched.users.load(Ordering::Acquire) == 0 && !self.watched.lock().asked {
                state.by_directory.remove(&self.watched.directory);
            }
        }
    }
}

/// Disarms when dropped.
struct Armed {
    watched: Arc<Watched>,
    keys: Option<Vec<EtcdKey>>,
    id: u64,
    notify: Arc<Notify>,
}

impl Drop for Armed {
    fn drop(&mut self) {
        let mut waiters = self.watched.lock();
        match &self.keys {
            None => waiters.any.retain(|(id, _)| *id != self.id),
            Some(keys) => {
                for key in keys {
                    if let Some(of_key) = waiters.by_key.get_mut(key) {
                        of_key.retain(|(id, _)| *id != self.id);
                        if of_key.is_empty() {
                            waiters.by_key.remove(key);
                        }
                    }
                }
            }
        }
    }
}

impl Watched {
    fn new(id: i64, directory: Directory) -> Self {
        Self {
            id,
            directory,
            users: AtomicUsize::new(0),
            state: Mutex::default(),
            epoch: AtomicU64::new(0),
            warmed: Notify::new(),
        }
    }

    fn options(&self) -> WatchOptions {
        WatchOptions::new()
            .with_range(self.directory.end())
            .with_filters([WatchFilterType::NoPut])
            .with_watch_id(self.id)
    }

    fn became_warm(&self) {
        self.lock().warm = true;
        self.warmed.notify_waiters();
    }

    /// Nothing is told any more: whoever waits looks for itself.
    fn became_cold(&self) {
        let woken = {
            let mut waiters = self.lock();
            waiters.warm = false;
            self.epoch.fetch_add(1, Ordering::AcqRel);
            let by_key = std::mem::take(&mut waiters.by_key);
            let any = std::mem::take(&mut waiters.any);
            by_key.into_values().flatten().chain(any).collect::<Vec<_>>()
        };
        for (_, notify) in woken {
            notify.notify_one();
        }
    }

    fn deleted(&self, key: &[u8]) {
        let woken = {
            let mut waiters = self.lock();
            self.epoch.fetch_add(1, Ordering::AcqRel);
            let by_key = waiters.by_key.remove(&EtcdKey::from(key)).unwrap_or_default();
            let any = std::mem::take(&mut waiters.any);
            by_key.into_iter().chain(any).collect::<Vec<_>>()
        };
        for (_, notify) in woken {
            notify.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the stream again and again, as long as anything is watched.
async fn run(watches: Weak<Watches>) {
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
                    if let std::collections::hash_map::Entry::Vacant(e) = asked.entry(watched.id) {
                        ask(cluster, &mut asks, &watched).await?;
                        e.insert(watched);
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

impl Watches {
    /// As [`to_watch`](Self::to_watch), for a task that goes on; `None` if the backend was closed.
    fn to_watch_on_stream(&self) -> Option<Vec<Arc<Watched>>> {
        let state = self.lock();
        if state.closed {
            return None;
        }
        Some(state.by_directory.values().filter(|watched| watched.lock().asked).cloned().collect())
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

//! A data watch on the node of each holder: it tells of its own loss, and of an operator who asks
//! for it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use leasehold_core::{BoxFuture, LossNotifier, LossReason, Result, contained};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use zookeeper_client::EventType;

use crate::{
    connection::Link,
    keys::{REVOKE, Uuid},
    session::ZookeeperSession,
    wake::{Event, Set, node, told},
};

/// A lock that is held for less than this needs no watch; most are not held for so long.
const GRACE: Duration = Duration::from_millis(20);
/// Before it is tried again to watch what could not be watched.
const RETRY: Duration = Duration::from_secs(1);

/// What is held, as long as it is.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) path: Arc<str>,
    pub(crate) uuid: Uuid,
    sink: LossNotifier,
    /// Set before the release is sent: that it goes is then no loss.
    released: AtomicBool,
}

impl Held {
    pub(crate) fn new(path: Arc<str>, uuid: Uuid, sink: LossNotifier) -> Arc<Self> {
        Arc::new(Self {
            path,
            uuid,
            sink,
            released: AtomicBool::new(false),
        })
    }

    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }
}

/// From when it is to be watched, and its watch if it has one already.
type Due = (Instant, Weak<Held>, Option<Event>);

/// What is to be watched.
#[derive(Default)]
pub(crate) struct LossWatcher {
    queue: Mutex<VecDeque<Due>>,
    added: Notify,
}

impl LossWatcher {
    /// Watches over what was granted: with the watch that its waiter had, or soon.
    pub(crate) fn add(&self, held: &Arc<Held>, watch: Option<Event>) {
        let due = Instant::now()
            + if watch.is_some() {
                Duration::ZERO
            } else {
                GRACE
            };
        self.put(due, Arc::downgrade(held), watch);
    }

    fn put(&self, due: Instant, held: Weak<Held>, watch: Option<Event>) {
        let mut queue = self.lock();
        let first = queue.is_empty() || watch.is_some();
        if watch.is_some() {
            queue.push_front((due, held, watch));
        } else {
            queue.push_back((due, held, watch));
        }
        drop(queue);
        if first {
            self.added.notify_one();
        }
    }

    /// When there is something to do.
    fn due(&self) -> Option<Instant> {
        self.lock().front().map(|(due, ..)| *due)
    }

    /// What is to be done now and still matters.
    fn take(&self) -> Vec<(Arc<Held>, Option<Event>)> {
        let now = Instant::now();
        let mut queue = self.lock();
        let mut taken = Vec::new();
        while queue.front().is_some_and(|(due, ..)| *due <= now)
            && let Some((_, held, watch)) = queue.pop_front()
        {
            taken.extend(
                held.upgrade()
                    .filter(|held| !held.is_released())
                    .map(|held| (held, watch)),
            );
        }
        taken
    }

    /// Completes when something is due.
    async fn wait(&self) {
        loop {
            match self.due() {
                None => self.added.notified().await,
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => return,
                        () = self.added.notified() => {}
                    }
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Due>> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was learned of a node.
enum Seen {
    /// It is there, and watched.
    There(Event, Vec<u8>),
    Gone,
    Changed,
    /// Nothing; tried again.
    Unknown,
}

type Watching = FuturesUnordered<BoxFuture<'static, (Weak<Held>, Seen)>>;

/// Watches over the holders of a session as long as it lives.
pub(crate) async fn watch(session: Weak<ZookeeperSession>, losses: Arc<LossWatcher>) {
    let mut watching = Watching::new();
    // A watch that panics is gone, and the others stay. The next reconciliation tells of a loss
    // that it would have told of.
    while contained(step(&session, &losses, &mut watching))
        .await
        .unwrap_or(true)
    {}
}

/// `false` once the session is over.
async fn step(
    session: &Weak<ZookeeperSession>,
    losses: &LossWatcher,
    watching: &mut Watching,
) -> Result<bool> {
    tokio::select! {
        () = losses.wait() => {}
        Some((held, seen)) = watching.next() => learned(session, losses, watching, held, seen),
        () = tokio::time::sleep(RETRY) => {}
    }
    let Some(session) = session.upgrade().filter(|session| session.is_live()) else {
        return Ok(false);
    };
    for (held, watch) in losses.take() {
        match watch {
            Some(watch) => watching.push(wait(Arc::downgrade(&held), watch)),
            None => match session.handle().link("watch") {
                Ok(link) => watching.push(set(held, link, session.handle().patience)),
                Err(_over) => return Ok(false),
            },
        }
    }
    Ok(true)
}

fn learned(
    session: &Weak<ZookeeperSession>,
    losses: &LossWatcher,
    watching: &Watching,
    weak: Weak<Held>,
    seen: Seen,
) {
    let Some(held) = weak.upgrade().filter(|held| !held.is_released()) else {
        return;
    };
    match seen {
        Seen::There(watch, data) => {
            watching.push(wait(weak, watch));
            if data.starts_with(REVOKE)
                && let Some(session) = session.upgrade()
            {
                session.handle().revoke(held.uuid);
                // It reconciles, and from then on its deadline stands.
                drop(tokio::spawn(async move { session.renew().await }));
            }
        }
        Seen::Gone => held.sink.lost(LossReason::Replaced),
        Seen::Changed => losses.put(Instant::now(), weak, None),
        Seen::Unknown => losses.put(Instant::now() + RETRY, weak, None),
    }
}

/// Sets a watch on it.
fn set(
    held: Arc<Held>,
    link: Arc<Link>,
    patience: Duration,
) -> BoxFuture<'static, (Weak<Held>, Seen)> {
    Box::pin(async move {
        // Without room the next reconciliation tells of a loss.
        let seen = match timeout(patience, node(&link, &held.path)).await {
            Ok(Ok(Set::Watching((watcher, room, data)))) => Seen::There(told(watcher, room), data),
            Ok(Ok(Set::Gone)) => Seen::Gone,
            _ => Seen::Unknown,
        };
        (Arc::downgrade(&held), seen)
    })
}

/// Waits for what it tells.
fn wait(held: Weak<Held>, watch: Event) -> BoxFuture<'static, (Weak<Held>, Seen)> {
    Box::pin(async move {
        let seen = match watch.await.event_type {
            EventType::NodeDeleted => Seen::Gone,
            // The end of the session is told to all that hold in it.
            _ => Seen::Changed,
        };
        (held, seen)
    })
}

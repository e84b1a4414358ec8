//! The task that watches the nodes of held leases. It learns at once that a node was deleted, or
//! that an operator asks for a revocation.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use leasehold_core::{
    Result,
    backend::{BoxFuture, support::contained},
};
use tokio::time::{Instant, timeout};
use zookeeper_client::EventType;

use crate::{
    connection::Link,
    node_data::REVOKE,
    session::ZookeeperSession,
    wake::{Event, Set, event_of, node},
    watch_queue::{WatchQueue, WatchedLease},
};

/// The pause before a watch that could not be set is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The state of a node, as a watch or an attempt to set one has shown it.
enum Seen {
    /// The node exists and is watched. Its data.
    There(Event, Vec<u8>),
    /// The node does not exist.
    Gone,
    /// The node has changed, and its watch is used up.
    Changed,
    /// The server did not answer, or the connection has no room for another watch.
    Unknown,
}

type Watching = FuturesUnordered<BoxFuture<'static, (Weak<WatchedLease>, Seen)>>;

/// Watches the nodes of a session's leases until the session ends.
pub(crate) async fn watch(session: Weak<ZookeeperSession>, queue: Arc<WatchQueue>) {
    let mut watching = Watching::new();
    // A panic loses one watch and keeps the rest. The next reconciliation then finds that loss.
    while contained(step(&session, &queue, &mut watching))
        .await
        .unwrap_or(true)
    {}
}

/// Handles what happens next. Returns `false` once the session is over.
async fn step(
    session: &Weak<ZookeeperSession>,
    queue: &WatchQueue,
    watching: &mut Watching,
) -> Result<bool> {
    tokio::select! {
        () = queue.wait() => {}
        Some((lease, seen)) = watching.next() => learned(session, queue, watching, lease, seen),
        () = tokio::time::sleep(RETRY) => {}
    }
    let live = session.upgrade().filter(|session| session.is_live());
    let Some(session) = live else {
        return Ok(false);
    };
    for (lease, watch) in queue.take() {
        match watch {
            Some(watch) => watching.push(wait(Arc::downgrade(&lease), watch)),
            None => match session.handle().link("watch") {
                Ok(link) => watching.push(set(lease, link, session.handle().patience)),
                Err(_over) => return Ok(false),
            },
        }
    }
    Ok(true)
}

fn learned(
    session: &Weak<ZookeeperSession>,
    queue: &WatchQueue,
    watching: &Watching,
    weak: Weak<WatchedLease>,
    seen: Seen,
) {
    let held = weak.upgrade().filter(|lease| !lease.is_released());
    let Some(lease) = held else { return };
    match seen {
        Seen::There(watch, data) => {
            watching.push(wait(weak, watch));
            if data.starts_with(REVOKE)
                && let Some(session) = session.upgrade()
            {
                session.handle().revoke(lease.uuid);
                // The renewal reconciles, and the deadline of this lease does not move after it.
                drop(tokio::spawn(async move { session.renew().await }));
            }
        }
        Seen::Gone => lease.lost(),
        Seen::Changed => queue.put(Instant::now(), weak, None),
        Seen::Unknown => queue.put(Instant::now() + RETRY, weak, None),
    }
}

/// Sets a watch on the node of a lease.
fn set(
    lease: Arc<WatchedLease>,
    link: Arc<Link>,
    patience: Duration,
) -> BoxFuture<'static, (Weak<WatchedLease>, Seen)> {
    Box::pin(async move {
        // Without room for a watch, the next reconciliation finds a loss.
        let seen = match timeout(patience, node(&link, &lease.path)).await {
            Ok(Ok(Set::Watching((watcher, room, data)))) => {
                Seen::There(event_of(watcher, room), data)
            }
            Ok(Ok(Set::Gone)) => Seen::Gone,
            _ => Seen::Unknown,
        };
        (Arc::downgrade(&lease), seen)
    })
}

/// Waits for an event of the node of a lease.
fn wait(lease: Weak<WatchedLease>, watch: Event) -> BoxFuture<'static, (Weak<WatchedLease>, Seen)> {
    Box::pin(async move {
        let seen = match watch.await.event_type {
            EventType::NodeDeleted => Seen::Gone,
            // The end of a session is reported to all its leases elsewhere.
            _ => Seen::Changed,
        };
        (lease, seen)
    })
}

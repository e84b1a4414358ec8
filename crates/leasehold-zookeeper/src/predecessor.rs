//! Waiting in the queue.

use std::{sync::Arc, time::Duration};

use leasehold_core::{Error, Result, backend::support::RetryBudget, session::cancelled};
use zookeeper_client::{EventType, OneshotWatcher, WatchedEvent};

use crate::{
    batch::Created,
    connection::{Link, Room},
    error::{self, SideEffect},
    node_data::REVOKE,
    pending_lock::{PendingLock, lost_place},
    queue::{Standing, Wait},
    session::note,
    wake::{self, Event, Set},
};

/// The poll interval of a waiter that could not set a watch.
const UNWATCHED: Duration = Duration::from_millis(100);

/// The nodes ahead of a waiter.
enum Predecessor {
    /// The node at this path.
    Node(String),
    /// Any child of the directory. `None` if there was no room for a watch.
    Anybody(Option<(OneshotWatcher, Room)>),
}

impl PendingLock {
    /// Waits in the queue until the lock is granted. Returns the watch on its own node, if one is
    /// set.
    pub(crate) async fn wait(&self, queued: &mut Created) -> Result<Option<Event>> {
        let mut own = None;
        let mut trouble = RetryBudget::none();
        loop {
            match self.step(queued, &mut own).await {
                Ok(true) => return Ok(own),
                Ok(false) => trouble = RetryBudget::none(),
                Err(error) => {
                    note(self.place(), &error);
                    trouble.spend(error, &self.request)?;
                    tokio::select! {
                        () = tokio::time::sleep(trouble.pause()) => {}
                        () = self.ended() => return Err(lost_place()),
                        () = self.request.cancelled() => return Err(cancelled()),
                    }
                }
            }
        }
    }

    /// Reads its position, and waits until the position may have changed. Returns whether the lock
    /// is granted.
    ///
    /// A lock is granted by a read, never by an event. A watch fires for every event of a node, and
    /// an event may come from an earlier connection.
    async fn step(&self, queued: &mut Created, own: &mut Option<Event>) -> Result<bool> {
        let handle = self.place().session().handle();
        let link = handle.link("acquire")?;
        let (children, anybody) = match queued.children.take() {
            Some(children) => (children, None),
            None if self.request.mode().is_permit() => {
                let listed = wake::children(&link, &self.directory);
                let (children, watch) = handle
                    .cluster
                    .ask("acquire", SideEffect::None, handle.patience, listed)
                    .await?;
                (children, Some(watch))
            }
            None => (self.list().await?, None),
        };
        let wait = match self.standing(&children)? {
            Standing::Holds => {
                queued.children = Some(children);
                return Ok(true);
            }
            Standing::Absent => return Err(lost_place()),
            Standing::Waits(wait) => {
                self.request.set_contended();
                wait
            }
        };
        let ahead = match (wait, anybody) {
            (Wait::For(child), _) => Predecessor::Node(self.directory.child(&child)),
            (Wait::Any, Some(watch)) => Predecessor::Anybody(watch),
            // The directory was read without a watch: read it again with one.
            (Wait::Any, None) => return Ok(false),
        };
        let watching = self.watch(&link, &queued.path, own, ahead);
        let watching = async { Ok(watching.await) };
        let (event, net) = match handle
            .cluster
            .ask("acquire", SideEffect::None, handle.patience, watching)
            .await??
        {
            Set::Watching(event) => (event, handle.cluster.config.fallback_poll_interval),
            Set::NoRoom => (Box::pin(std::future::pending()) as Event, UNWATCHED),
            Set::Gone => return Ok(false),
        };
        tokio::select! {
            // Its own node first: if both are gone, the lock is not granted.
            biased;
            event = next_event(own) => {
                *own = None;
                match event.event_type {
                    EventType::NodeDeleted | EventType::Session => Err(lost_place()),
                    _ => Ok(false),
                }
            }
            _ = event => Ok(false),
            () = self.ended() => Err(lost_place()),
            () = self.request.cancelled() => Err(cancelled()),
            () = tokio::time::sleep(net) => Ok(false),
        }
    }

    /// Watches the node ahead and its own node, in one round trip.
    async fn watch(
        &self,
        link: &Arc<Link>,
        path: &str,
        own: &mut Option<Event>,
        ahead: Predecessor,
    ) -> Result<Set<Event>> {
        let handle = self.place().session().handle();
        let failed = |error| {
            error::from_driver(
                error,
                "acquire",
                SideEffect::None,
                &handle.cluster.endpoint(),
            )
        };
        let mine = async {
            if own.is_none() {
                match wake::node(link, path).await.map_err(failed)? {
                    // Once the lock is held, the task that watches its node reads this again.
                    Set::Watching((.., data)) if data.starts_with(REVOKE) => {}
                    Set::Watching((watcher, room, _)) => *own = Some(wake::event_of(watcher, room)),
                    Set::Gone => return Err(lost_place()),
                    Set::NoRoom => {}
                }
            }
            Ok(())
        };
        let other = async {
            Ok::<_, Error>(match ahead {
                Predecessor::Node(path) => match wake::node(link, &path).await.map_err(failed)? {
                    Set::Watching((watcher, room, _)) => {
                        Set::Watching(wake::event_of(watcher, room))
                    }
                    Set::Gone => Set::Gone,
                    Set::NoRoom => Set::NoRoom,
                },
                Predecessor::Anybody(Some((watcher, room))) => {
                    Set::Watching(wake::event_of(watcher, room))
                }
                Predecessor::Anybody(None) => Set::NoRoom,
            })
        };
        let (mine, other) = futures_util::future::join(mine, other).await;
        mine?;
        other
    }
}

/// Completes with the event of a watch. Without a watch it never completes.
async fn next_event(watch: &mut Option<Event>) -> WatchedEvent {
    match watch {
        Some(watch) => watch.await,
        None => std::future::pending().await,
    }
}

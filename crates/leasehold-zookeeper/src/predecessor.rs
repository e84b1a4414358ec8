//! Waiting in the queue.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use leasehold_core::{Error, Result, backend::support::RetryBudget, session::cancelled};
use zookeeper_client::{EventType, OneshotWatcher, WatchedEvent};

use crate::{
    batch::Created,
    connection::{Link, Room},
    error::{self, Effect},
    keys::{REVOKE, may_move},
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
    Node {
        path: String,
        /// Whether no other node is in the way.
        is_only: bool,
    },
    /// Any child of the directory. `None` if there was no room for a watch.
    Anybody(Option<(OneshotWatcher, Room)>),
}

/// A watch on the nodes ahead.
struct Watch {
    event: Event,
    /// Whether the lock is granted once the watched node is deleted.
    grants: bool,
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
    /// A lock is granted by what was read, because a watch fires for every event of a node. One
    /// event means as much as a read: the deletion of the node of a holder, if no other node was in
    /// the way.
    ///
    /// - No node can appear ahead, except one that takes over the number of a waiter's node. So the
    ///   deleted node must not be the node of a waiter, also if another program has written to it.
    /// - The server reports events in their order. If it has reported none of the own node, that
    ///   node existed when the other one was deleted. After a reconnection the order is unknown.
    async fn step(&self, queued: &mut Created, own: &mut Option<Event>) -> Result<bool> {
        let handle = self.place().session().handle();
        let link = handle.link("acquire")?;
        let (mut children, anybody) = match queued.children.take() {
            Some(children) => (children, None),
            None if self.request.mode().is_permit() => {
                let listed = wake::children(&link, &self.directory);
                let (children, watch) = handle
                    .cluster
                    .ask("acquire", Effect::None, handle.patience, listed)
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
            (Wait::For { child, is_only }, _) => {
                children.retain(|name| *name != child);
                let path = self.directory.child(&child);
                Predecessor::Node { path, is_only }
            }
            (Wait::Any, Some(watch)) => Predecessor::Anybody(watch),
            // The directory was read without a watch: read it again with one.
            (Wait::Any, None) => return Ok(false),
        };
        let mut connection = link.client.state_watcher();
        // Changes are counted from here on.
        connection.state();
        let watching = self.watch(&link, &queued.path, own, ahead);
        let watching = async { Ok(watching.await) };
        let unwatched = || Watch {
            event: Box::pin(std::future::pending()),
            grants: false,
        };
        let (watch, net) = match handle
            .cluster
            .ask("acquire", Effect::None, handle.patience, watching)
            .await??
        {
            Set::Watching(watch) => (watch, handle.cluster.config.fallback_poll_interval),
            Set::NoRoom => (unwatched(), UNWATCHED),
            Set::Gone => return Ok(false),
        };
        let told = tokio::select! {
            biased;
            told = told(own) => {
                *own = None;
                return after_own(&told);
            }
            told = watch.event => told,
            () = self.ended() => return Err(lost_place()),
            () = self.request.cancelled() => return Err(cancelled()),
            () = tokio::time::sleep(net) => return Ok(false),
        };
        if !watch.grants
            || told.event_type != EventType::NodeDeleted
            || connection.changed().now_or_never().is_some()
        {
            return Ok(false);
        }
        match own.as_mut().map(FutureExt::now_or_never) {
            Some(None) => {
                queued.children = Some(children);
                Ok(true)
            }
            // Both events arrived after the first look at this one.
            Some(Some(told)) => {
                *own = None;
                after_own(&told)
            }
            None => Ok(false),
        }
    }

    /// Watches the node ahead and its own node, in one round trip.
    async fn watch(
        &self,
        link: &Arc<Link>,
        path: &str,
        own: &mut Option<Event>,
        ahead: Predecessor,
    ) -> Result<Set<Watch>> {
        let handle = self.place().session().handle();
        let failed =
            |error| error::of_driver(error, "acquire", Effect::None, &handle.cluster.endpoint());
        let mine = async {
            if own.is_none() {
                match wake::node(link, path).await.map_err(failed)? {
                    // Once the lock is held, the task that watches its node reads this again.
                    Set::Watching((.., data)) if data.starts_with(REVOKE) => {}
                    Set::Watching((watcher, room, _)) => *own = Some(wake::told(watcher, room)),
                    Set::Gone => return Err(lost_place()),
                    Set::NoRoom => {}
                }
            }
            Ok(())
        };
        let other = async {
            Ok::<_, Error>(match ahead {
                Predecessor::Node { path, is_only } => {
                    match wake::node(link, &path).await.map_err(failed)? {
                        Set::Watching((watcher, room, data)) => {
                            let grants = is_only && !may_move(&path, &data);
                            let event = wake::told(watcher, room);
                            Set::Watching(Watch { event, grants })
                        }
                        Set::Gone => Set::Gone,
                        Set::NoRoom => Set::NoRoom,
                    }
                }
                Predecessor::Anybody(Some((watcher, room))) => {
                    let (event, grants) = (wake::told(watcher, room), false);
                    Set::Watching(Watch { event, grants })
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
async fn told(watch: &mut Option<Event>) -> WatchedEvent {
    match watch {
        Some(watch) => watch.await,
        None => std::future::pending().await,
    }
}

/// Returns what an event of its own node means to a waiter: it has lost its place, or must look
/// again.
fn after_own(told: &WatchedEvent) -> Result<bool> {
    match told.event_type {
        EventType::NodeDeleted | EventType::Session => Err(lost_place()),
        _ => Ok(false),
    }
}

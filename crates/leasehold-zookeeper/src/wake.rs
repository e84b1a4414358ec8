//! Watches on the nodes that a waiter waits for.

use std::{pin::Pin, sync::Arc};

use leasehold_core::backend::Request;
use zookeeper_client::{Error as Driver, OneshotWatcher, WatchedEvent};

use crate::{
    connection::{Cluster, Link, Room},
    keys::Directory,
    queue::{self, Wait},
};

/// A future that completes with the event of a watched node.
pub(crate) type Event = Pin<Box<dyn Future<Output = WatchedEvent> + Send>>;

/// The result of setting a watch.
pub(crate) enum Set<T> {
    Watching(T),
    /// The node does not exist.
    Gone,
    /// The connection has no room for another watch. The caller must poll.
    NoRoom,
}

/// Watches a node, and reads its data.
pub(crate) async fn node(
    link: &Arc<Link>,
    path: &str,
) -> Result<Set<(OneshotWatcher, Room, Vec<u8>)>, Driver> {
    let Some(room) = link.room(path) else {
        return Ok(Set::NoRoom);
    };
    match link.client.get_and_watch_data(path).await {
        Ok((data, _, watcher)) => Ok(Set::Watching((watcher, room, data))),
        Err(Driver::NoNode) => Ok(Set::Gone),
        Err(error) => Err(error),
    }
}

/// Watches the children of a directory, and lists them. Without room for a watch it only lists.
pub(crate) async fn children(
    link: &Arc<Link>,
    directory: &Directory,
) -> Result<(Vec<String>, Option<(OneshotWatcher, Room)>), Driver> {
    let Some(room) = link.room(directory.path()) else {
        return link
            .client
            .list_children(directory.path())
            .await
            .map(|children| (children, None));
    };
    let (children, watcher) = link
        .client
        .list_and_watch_children(directory.path())
        .await?;
    Ok((children, Some((watcher, room))))
}

/// Waits for the event of a watch.
pub(crate) fn event_of(watcher: OneshotWatcher, room: Room) -> Event {
    Box::pin(async move {
        let event = watcher.changed().await;
        drop(room);
        event
    })
}

/// Completes when a refused attempt should be repeated: the lock may be free.
pub(crate) async fn until_retry(cluster: Arc<Cluster>, request: Request, directory: Directory) {
    let Ok(link) = cluster.shared("acquire").await else {
        return;
    };
    let watched = async {
        // The server of this connection may be behind the one that refused the attempt.
        let (sync, list) = (
            link.client.sync(directory.path()),
            children(&link, &directory),
        );
        let (_synced, listed) = futures_util::future::join(sync, list).await;
        listed
    };
    let Ok(Ok((children, any))) = tokio::time::timeout(cluster.config.timeout, watched).await
    else {
        return;
    };
    match queue::refusal(request.key(), request.mode(), &children) {
        // The lock is free already, or its state is unknown.
        Ok(None) | Err(_) => {}
        Ok(Some(Wait::Any)) => match any {
            Some((watcher, room)) => drop(event_of(watcher, room).await),
            None => tokio::time::sleep(cluster.config.fallback_poll_interval).await,
        },
        Ok(Some(Wait::For(child))) => {
            drop(any);
            let path = directory.child(&child);
            match tokio::time::timeout(cluster.config.timeout, node(&link, &path)).await {
                Ok(Ok(Set::Watching((watcher, room, _)))) => drop(event_of(watcher, room).await),
                Ok(Ok(Set::NoRoom)) => {
                    tokio::time::sleep(cluster.config.fallback_poll_interval).await;
                }
                _ => {}
            }
        }
    }
}

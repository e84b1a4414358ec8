//! Watches on those who are in the way.

use std::{pin::Pin, sync::Arc};

use leasehold_core::Request;
use zookeeper_client::{Error as Driver, OneshotWatcher, WatchedEvent};

use crate::{
    connection::{Cluster, Link, Room},
    keys::Directory,
    queue::{self, Wait},
};

/// A future that tells what happened to a node.
pub(crate) type Event = Pin<Box<dyn Future<Output = WatchedEvent> + Send>>;

/// What came of setting a watch.
pub(crate) enum Set<T> {
    Watching(T),
    /// The node is not there.
    Gone,
    /// There is no room for it: look again after a while.
    NoRoom,
}

/// Watches a node, and reads what it says.
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

/// Watches who comes and goes, and lists who is there.
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

/// Waits for a watch to tell.
pub(crate) fn told(watcher: OneshotWatcher, room: Room) -> Event {
    Box::pin(async move {
        let event = watcher.changed().await;
        drop(room);
        event
    })
}

/// Completes when trying again makes sense.
pub(crate) async fn woken(cluster: Arc<Cluster>, request: Request, directory: Directory) {
    let Ok(link) = cluster.shared("acquire").await else {
        return;
    };
    let watched = async {
        // That one server may be behind the one that was asked.
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
        // Free already, or nobody can tell.
        Ok(None) | Err(_) => {}
        Ok(Some(Wait::Any)) => match any {
            Some((watcher, room)) => drop(told(watcher, room).await),
            None => tokio::time::sleep(cluster.config.fallback_poll_interval).await,
        },
        Ok(Some(Wait::For(child))) => {
            drop(any);
            let path = directory.child(&child);
            match tokio::time::timeout(cluster.config.timeout, node(&link, &path)).await {
                Ok(Ok(Set::Watching((watcher, room, _)))) => drop(told(watcher, room).await),
                Ok(Ok(Set::NoRoom)) => {
                    tokio::time::sleep(cluster.config.fallback_poll_interval).await
                }
                _ => {}
            }
        }
    }
}

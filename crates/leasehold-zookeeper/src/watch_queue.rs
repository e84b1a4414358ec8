//! [`WatchQueue`]: the held leases of one session whose nodes must be watched.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_core::{LossReason, backend::LossNotifier};
use tokio::{sync::Notify, time::Instant};

use crate::{keys::Uuid, wake::Event};

/// A node is watched once its lock has been held for this long. Most locks are released earlier,
/// and a watch costs a request.
const GRACE: Duration = Duration::from_millis(20);

/// The node of a held lease, and whom its loss is reported to.
#[derive(Debug)]
pub(crate) struct WatchedLease {
    pub(crate) path: Arc<str>,
    pub(crate) uuid: Uuid,
    notifier: LossNotifier,
    /// Set before the release is sent: the end of the node is no loss from then on.
    released: AtomicBool,
}

impl WatchedLease {
    pub(crate) fn new(path: Arc<str>, uuid: Uuid, notifier: LossNotifier) -> Arc<Self> {
        Arc::new(Self {
            path,
            uuid,
            notifier,
            released: AtomicBool::new(false),
        })
    }

    /// Marks the lease as released. Must be called before the node is deleted.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// Reports that the node is gone although the lease was not released.
    pub(crate) fn lost(&self) {
        self.notifier.lost(LossReason::Replaced);
    }
}

/// The time at which a lease must be watched, and its watch if one is set already.
type Due = (Instant, Weak<WatchedLease>, Option<Event>);

/// A queue of leases that must be watched, the next one first.
#[derive(Default)]
pub(crate) struct WatchQueue {
    queue: Mutex<VecDeque<Due>>,
    added: Notify,
}

impl WatchQueue {
    /// Adds a lease that was just granted. It is watched at once with the watch of its waiter, or
    /// after a short while without one.
    pub(crate) fn add(&self, lease: &Arc<WatchedLease>, watch: Option<Event>) {
        let due = Instant::now()
            + if watch.is_some() {
                Duration::ZERO
            } else {
                GRACE
            };
        self.put(due, Arc::downgrade(lease), watch);
    }

    /// Adds a lease that must be watched from `due` on.
    pub(crate) fn put(&self, due: Instant, lease: Weak<WatchedLease>, watch: Option<Event>) {
        let mut queue = self.lock();
        let first = queue.is_empty() || watch.is_some();
        if watch.is_some() {
            queue.push_front((due, lease, watch));
        } else {
            queue.push_back((due, lease, watch));
        }
        drop(queue);
        if first {
            self.added.notify_one();
        }
    }

    /// Takes the leases that are due and still held.
    pub(crate) fn take(&self) -> Vec<(Arc<WatchedLease>, Option<Event>)> {
        let now = Instant::now();
        let mut queue = self.lock();
        let mut taken = Vec::new();
        while queue.front().is_some_and(|(due, ..)| *due <= now)
            && let Some((_, lease, watch)) = queue.pop_front()
        {
            let held = lease.upgrade().filter(|lease| !lease.is_released());
            taken.extend(held.map(|lease| (lease, watch)));
        }
        taken
    }

    /// Waits until a lease is due.
    pub(crate) async fn wait(&self) {
        loop {
            match self.next_due() {
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

    fn next_due(&self) -> Option<Instant> {
        self.lock().front().map(|(due, ..)| *due)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Due>> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use leasehold_core::{AcquisitionId, LockKey, backend::Request};

    use super::*;

    fn lease(number: u128) -> Arc<WatchedLease> {
        let notifier = Request::new(LockKey::new("k").unwrap()).loss_notifier();
        WatchedLease::new(
            "/k/n".into(),
            Uuid::new(1, AcquisitionId::from(number)),
            notifier,
        )
    }

    fn taken(queue: &WatchQueue) -> Vec<Uuid> {
        queue.take().iter().map(|(lease, _)| lease.uuid).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn lease_is_due_once_it_was_held_for_a_while() {
        let (queue, lease) = (WatchQueue::default(), lease(1));
        queue.add(&lease, None);
        assert!(taken(&queue).is_empty());
        queue.wait().await;
        assert_eq!(taken(&queue), [lease.uuid]);
        assert!(taken(&queue).is_empty(), "taken twice");
    }

    #[tokio::test(start_paused = true)]
    async fn lease_with_a_watch_is_due_at_once_and_wakes_the_queue() {
        let (queue, first, second) = (WatchQueue::default(), lease(1), lease(2));
        queue.add(&first, None);
        let begun = Instant::now();
        let add = async { queue.add(&second, Some(Box::pin(std::future::pending()))) };
        tokio::join!(queue.wait(), add);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(taken(&queue), [second.uuid]);
    }

    #[tokio::test(start_paused = true)]
    async fn released_and_dropped_leases_are_not_watched() {
        let (queue, released) = (WatchQueue::default(), lease(1));
        queue.add(&released, None);
        queue.add(&lease(2), None);
        released.release();
        tokio::time::advance(GRACE).await;
        assert!(taken(&queue).is_empty());
    }
}

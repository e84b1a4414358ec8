//! The entry to the local queue: waiting for a place, or taking a free one.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{
    backend::request::Request,
    error::Result,
    local_queue::{
        key_queue::{Admitted, Ahead, Waiter},
        position::{Place, Queued},
        queues::{LocalQueues, QueueKey, closed},
    },
    mode::Mode,
};

impl LocalQueues {
    /// Waits for a place at the head of the key's queue. Calls `waits_for_itself` if the same task
    /// still holds the place after a TTL. If the future is dropped, the request's signal has the
    /// reason for the wait.
    ///
    /// # Errors
    /// - [`Closed`](crate::ErrorKind::Closed) if the client closes or drains.
    /// - The error of a task ahead, if the backend did not answer it for a TTL of this request.
    ///
    /// # Cancel safety
    /// Safe: a place that was assigned meanwhile passes to the next task.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        request: &Request,
        waits_for_itself: impl FnOnce(),
    ) -> Result<Place> {
        let (mode, who) = (request.mode(), Admitted::of(request));
        let (key, timeout) = (
            QueueKey::new(request.key(), mode),
            request.ttl().as_duration(),
        );
        let now = self.clock.now();
        let (id, receiver, own) = {
            let mut state = self.lock();
            if state.closed {
                return Err(closed());
            }
            let id = state.next_id;
            let queue = state.open(&key, now);
            if queue.waiters.is_empty() && queue.admits(mode) {
                let yields = queue.admit(mode, who, now);
                drop(state);
                return Ok(Place::new(self, key, mode, yields, request.signal()));
            }
            let own = queue.ahead == Ahead::One
                && queue
                    .last
                    .as_ref()
                    .is_some_and(|last| last.asker == who.asker);
            let (admit, receiver) = oneshot::channel();
            queue.waiters.push_back(Waiter {
                id,
                mode,
                who,
                since: now,
                timeout,
                admit,
            });
            state.next_id += 1;
            (id, receiver, own)
        };
        let mut queued = Queued {
            queues: self,
            key: Some(key),
            mode,
            id,
            receiver,
            answer: None,
        };
        if own
            && tokio::time::timeout(timeout, queued.admitted())
                .await
                .is_err()
        {
            waits_for_itself();
        }
        let yields = queued.admitted().await?;
        match queued.key.take() {
            Some(key) => Ok(Place::new(self, key, mode, yields, request.signal())),
            None => Err(closed()),
        }
    }

    /// Returns a place if no task is ahead. Its grant counts towards the fairness quota, so that a
    /// loop of attempts starves no waiter of another process. With `None` the caller makes its
    /// attempt outside of the queue. It should then yield to waiters, because a task of this
    /// process may be waiting.
    ///
    /// Waits for releases of this process that began earlier and are not yet sent, if they would
    /// make the attempt fail.
    pub(crate) async fn try_enter(self: &Arc<Self>, request: &Request) -> Result<Option<Place>> {
        let mode = request.mode();
        let key = QueueKey::new(request.key(), mode);
        let unsent = self.with_existing(&key, |queue| match mode {
            Mode::Exclusive => queue.releases(),
            Mode::Shared if queue.exclusive_releasing => queue.releases(),
            _ => None,
        });
        if let Some(sent) = unsent {
            // The sender is dropped when they are sent.
            drop(sent.await);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(closed());
        }
        let now = self.clock.now();
        let queue = state.open(&key, now);
        if queue.waiters.is_empty() && queue.admits(mode) {
            let yields = queue.admit(mode, Admitted::of(request), now);
            drop(state);
            return Ok(Some(Place::new(self, key, mode, yields, request.signal())));
        }
        Ok(None)
    }
}

//! How a task gets a place: it waits, or it takes one that is free.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{
    backend::request::Request,
    error::Result,
    local_queue::{
        key_queue::{Admitted, Ahead, Ticket},
        position::{Place, Queued},
        queues::{LocalQueues, QueueKey, closed},
    },
    mode::Mode,
};

impl LocalQueues {
    /// Waits for a place at the head of the key's queue. Calls `waits_for_itself` if the place is
    /// still held by the same task after a TTL. If the task leaves without a place, its signal
    /// says why it waited.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed); or the error of a task ahead, if the backend did not answer it for as
    /// long as this task has waited.
    ///
    /// # Cancel safety
    /// Safe: a place that was given meanwhile is handed on.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        request: &Request,
        waits_for_itself: impl FnOnce(),
    ) -> Result<Place> {
        let (mode, who) = (request.mode(), Admitted::of(request));
        let (key, patience) = (
            QueueKey::new(request.key(), mode),
            request.ttl().as_duration(),
        );
        let now = self.clock.now();
        let (id, admitted, own) = {
            let mut state = self.lock();
            if state.closed {
                return Err(closed());
            }
            let id = state.next_ticket;
            let lane = state.open(&key, now);
            if lane.queue.is_empty() && lane.admits(mode) {
                let yields = lane.admit(mode, who, now);
                drop(state);
                return Ok(Place::new(self, key, mode, yields, request.signal()));
            }
            let own = lane.ahead == Ahead::One
                && lane
                    .last
                    .as_ref()
                    .is_some_and(|last| last.asker == who.asker);
            let (admit, admitted) = oneshot::channel();
            lane.queue.push_back(Ticket {
                id,
                mode,
                who,
                since: now,
                patience,
                admit,
            });
            state.next_ticket += 1;
            (id, admitted, own)
        };
        let mut queued = Queued {
            queues: self,
            key: Some(key),
            mode,
            id,
            admitted,
            answer: None,
        };
        if own && tokio::time::timeout(patience, queued.turn()).await.is_err() {
            waits_for_itself();
        }
        let yields = queued.turn().await?;
        match queued.key.take() {
            Some(key) => Ok(Place::new(self, key, mode, yields, request.signal())),
            None => Err(closed()),
        }
    }

    /// Returns a place if nobody is ahead. Its grant counts towards the fairness quota, so that a
    /// loop of tries starves no waiter of another process. With `None` the caller makes its attempt
    /// outside of the queue, and should yield to waiters, because a task of this process may be
    /// waiting.
    ///
    /// Waits only for releases of this process that began before and are not yet sent, and only if
    /// one of them is certain to be in the way.
    pub(crate) async fn try_enter(self: &Arc<Self>, request: &Request) -> Result<Option<Place>> {
        let mode = request.mode();
        let key = QueueKey::new(request.key(), mode);
        let in_the_way = self.look(&key, |lane| match mode {
            Mode::Exclusive => lane.releases(),
            Mode::Shared if lane.exclusive_releasing => lane.releases(),
            _ => None,
        });
        if let Some(sent) = in_the_way {
            // Its sender is dropped when they are sent.
            drop(sent.await);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(closed());
        }
        let now = self.clock.now();
        let lane = state.open(&key, now);
        if lane.queue.is_empty() && lane.admits(mode) {
            let yields = lane.admit(mode, Admitted::of(request), now);
            drop(state);
            return Ok(Some(Place::new(self, key, mode, yields, request.signal())));
        }
        Ok(None)
    }
}

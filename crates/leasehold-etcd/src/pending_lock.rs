//! [`PendingLock`]: an acquisition on its way.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Error, ErrorKind, Mode, Result,
    backend::{Lease, Request, support::RetryBudget},
    session::{Claim, cancelled},
};

use crate::{
    connection::Cluster,
    error,
    lease::EtcdLease,
    queue::{QueueKey, QueuePosition, TxnKind, TxnResult},
    session::{self, EtcdSessions},
    waiters::WaiterRegistry,
};

/// How long a waiter waits for its watch before it looks at its queue_key, and again after it has
/// looked without one.
const UNWATCHED_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// An acquisition that has a queue_key in a session, or is about to.
pub(crate) struct PendingLock {
    pub(crate) claim: Claim<EtcdSessions>,
    /// While it waits, its key is of another lease, with a short TTL: the key of a waiter that has
    /// died blocks those behind it for seconds, whatever its TTL.
    pub(crate) waiting: Option<Claim<EtcdSessions>>,
    pub(crate) request: Request,
    pub(crate) queue_key: Arc<QueueKey>,
}

impl PendingLock {
    pub(crate) async fn run(&self, kind: TxnKind) -> Result<TxnResult> {
        let of_waiters = matches!(kind, TxnKind::Enqueue { .. } | TxnKind::Leave);
        let claims: Vec<_> = match &self.waiting {
            Some(waiting) if of_waiters && waiting.session().is_live() => {
                vec![waiting, &self.claim]
            }
            Some(waiting) => vec![&self.claim, waiting],
            None => vec![&self.claim],
        };
        session::run(&claims, "acquire", &self.queue_key, kind)
            .await
            .map(|(answer, _)| answer)
    }

    /// The lease that its key is of when it queues.
    pub(crate) fn queueing_lease(&self) -> i64 {
        self.waiting
            .as_ref()
            .unwrap_or(&self.claim)
            .session()
            .handle()
            .lease
    }

    /// Completes when a session has ended that it needs.
    async fn ended(&self) {
        match &self.waiting {
            Some(waiting) => tokio::select! {
                () = self.claim.session().ended() => {}
                () = waiting.session().ended() => {}
            },
            None => self.claim.session().ended().await,
        }
    }

    /// Moves its key, which holds, to the lease of its session, if it is of another one.
    pub(crate) async fn move_to_session(&self, revision: i64) -> Result<i64> {
        if self.waiting.is_some() {
            let lease = self.claim.session().handle().lease;
            let answer = self.run(TxnKind::Hold { lease, revision }).await?;
            if !answer.txn()?.succeeded() {
                return Err(lost_position());
            }
        }
        Ok(revision)
    }

    /// Makes a lease of it, if its session still stands.
    pub(crate) async fn granted(self, revision: i64) -> Result<Arc<dyn Lease>> {
        let now = self.request.now();
        if self.claim.valid_until().is_past(now) || !self.claim.hold(self.request.loss_notifier()) {
            self.leave().await;
            return Err(lost_position());
        }
        let Self {
            claim,
            waiting: _,
            request,
            queue_key,
        } = self;
        Ok(Arc::new(EtcdLease::new(
            claim, request, queue_key, revision,
        )))
    }

    /// Takes its key away, whatever it stood for.
    pub(crate) async fn leave(&self) {
        let claims = || self.waiting.iter().chain([&self.claim]);
        if !claims().any(|claim| claim.session().is_live()) {
            // Their end on the server takes the key with it.
            return;
        }
        if let Err(error) = self.run(TxnKind::Leave).await {
            tracing::debug!(target: "leasehold", key = ?self.queue_key.key, %error, "not taken away; the next renewal does");
            for claim in claims() {
                claim.retire();
                claim.doubt();
            }
        }
    }

    /// Waits in the queue until it holds. Reads its own key after every wait: whatever woke it,
    /// only what the cluster says then counts.
    pub(crate) async fn wait(
        &self,
        cluster: &Arc<Cluster>,
        waiters: &Arc<WaiterRegistry>,
        revision: i64,
    ) -> Result<i64> {
        let Self {
            claim,
            request,
            queue_key,
            ..
        } = self;
        let timeout = cluster.request_timeout(request.ttl());
        let registration = waiters.register(&queue_key.lock_prefix);
        let position = queue_key.position_txn(revision);
        let lease = claim.session().handle().lease;
        let (mut budget, mut was_notified) = (RetryBudget::none(), false);
        // Its queue_key in the queue says so.
        request.set_contended();
        loop {
            // A watch that cannot be had leaves the fallback poll interval.
            let watched = registration.establish(UNWATCHED_POLL_INTERVAL).await;
            let before = registration.generation();
            // Who is told that the key ahead is gone most likely holds now: one transaction instead
            // of two.
            let answer =
                if was_notified && self.waiting.is_some() && queue_key.mode == Mode::Exclusive {
                    match self.run(TxnKind::HoldIfFirst { lease, revision }).await {
                        Ok(TxnResult::Txn(answer)) if answer.succeeded() => return Ok(revision),
                        Ok(answer) => answer.txn().cloned(),
                        Err(error) => Err(error),
                    }
                } else {
                    cluster
                        .txn("acquire", error::SideEffect::None, timeout, &position)
                        .await
                };
            let checked = match answer
                .and_then(|answer| queue_key.parse_position(request.key(), revision, &answer))
            {
                Ok((QueuePosition::Holds(revision), _)) => {
                    match self.move_to_session(revision).await {
                        Err(error) => Err(error),
                        granted => return granted,
                    }
                }
                Ok((QueuePosition::Absent, _)) => {
                    // Taken away, or expired with the session: never granted from here.
                    return Err(lost_position());
                }
                Ok((QueuePosition::Waits(_), ahead)) => {
                    request.set_contended();
                    Ok(ahead)
                }
                Err(error) => Err(error),
            };
            let wait = match checked {
                Ok(ahead) => {
                    budget = RetryBudget::none();
                    let interval = if watched.is_ok() {
                        cluster.config.fallback_poll_interval
                    } else {
                        UNWATCHED_POLL_INTERVAL
                    };
                    Some((registration.deleted(ahead, before), interval))
                }
                Err(error) => {
                    budget.spend(error, request)?;
                    None
                }
            };
            let woken = async {
                match wait {
                    Some((deleted, interval)) => {
                        tokio::time::timeout(interval, deleted).await.is_ok()
                    }
                    None => {
                        tokio::time::sleep(budget.pause()).await;
                        false
                    }
                }
            };
            was_notified = tokio::select! {
                notified = woken => notified,
                () = self.ended() => return Err(lost_position()),
                () = request.cancelled() => return Err(cancelled()),
            }
        }
    }
}

pub(crate) fn lost_position() -> Error {
    error::plain(
        ErrorKind::Lost,
        "acquire",
        "the session ended, or an operator took the queue_key away, before it was granted",
    )
}

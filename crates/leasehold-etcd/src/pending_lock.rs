//! [`PendingLock`]: an acquisition in progress.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Error, ErrorKind, Mode, Result,
    backend::{Lease, Request, support::RetryBudget},
    session::{Claim, cancelled},
};

use crate::{
    connection::Cluster,
    error::{self, ERRORS},
    lease::EtcdLease,
    queue::{QueueKey, QueuePosition, TxnKind, TxnResult},
    session::{self, EtcdSessions},
    waiters::{WaiterRegistry, Watched},
};

/// How long a waiter waits for its watch before it checks its position. Without a watch it then
/// waits for as long again, so that it checks every 100 ms.
const UNWATCHED_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// An acquisition with a claim in a session, and perhaps a key in the queue.
pub(crate) struct PendingLock {
    pub(crate) claim: Claim<EtcdSessions>,
    /// The claim in the session of waiters, to whose lease the key of a waiter belongs. Its TTL is
    /// short, because the key of a dead waiter blocks the waiters behind it.
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

    /// Returns the lease of the key while it is in the queue.
    pub(crate) fn queueing_lease(&self) -> i64 {
        self.waiting
            .as_ref()
            .unwrap_or(&self.claim)
            .session()
            .handle()
            .lease
    }

    /// Completes when one of its sessions has ended.
    async fn ended(&self) {
        match &self.waiting {
            Some(waiting) => tokio::select! {
                () = self.claim.session().ended() => {}
                () = waiting.session().ended() => {}
            },
            None => self.claim.session().ended().await,
        }
    }

    /// Moves the key to the lease of its session, if it belongs to the lease of waiters.
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

    /// Creates the lease, if the session is still valid.
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

    /// Deletes the key, of a holder or of a waiter.
    pub(crate) async fn leave(&self) {
        let claims = || self.waiting.iter().chain([&self.claim]);
        if !claims().any(|claim| claim.session().is_live()) {
            // The end of the sessions on the server deletes the key.
            return;
        }
        if let Err(error) = self.run(TxnKind::Leave).await {
            tracing::debug!(target: "leasehold", key = ?self.queue_key.key, %error, "the key was not deleted; the next renewal deletes it");
            for claim in claims() {
                claim.tombstone();
            }
        }
    }

    /// Waits in the queue until the lock is granted. Reads its own key after every wait, because
    /// only the state of the cluster counts, not the notification.
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
        let registration = waiters.register(Watched::Lock(queue_key.lock_prefix.clone()));
        let position = queue_key.position_txn(revision);
        let lease = claim.session().handle().lease;
        let (mut budget, mut was_notified) = (RetryBudget::none(), false);
        // Its position in the queue shows contention.
        request.set_contended();
        loop {
            // Without a watch, the waiter polls.
            let watched = registration.establish(UNWATCHED_POLL_INTERVAL).await;
            let before = registration.generation();
            // A waiter that was notified of the deletion of the key ahead most likely holds the
            // lock now: one transaction instead of two.
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
                    // The key was deleted, or expired with its session. This acquisition is never
                    // granted.
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
                    Some((registration.any_of(ahead, before), interval))
                }
                Err(error) => {
                    budget.spend(error, request)?;
                    None
                }
            };
            let notified = async {
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
                result = notified => result,
                () = self.ended() => return Err(lost_position()),
                () = request.cancelled() => return Err(cancelled()),
            }
        }
    }
}

pub(crate) fn lost_position() -> Error {
    ERRORS.error(
        ErrorKind::Lost,
        "acquire",
        "the session ended, or the key was revoked, before the lock was granted",
    )
}

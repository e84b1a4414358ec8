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
    queue::{Answer, Place, Standing, Step},
    session::{self, EtcdSessions},
    waiters::WaiterRegistry,
};

/// How long a waiter waits for its watch before it looks at its place, and again after it has
/// looked without one.
const UNWATCHED: Duration = Duration::from_millis(50);

/// An acquisition that has a place in a session, or is about to.
pub(crate) struct PendingLock {
    pub(crate) claim: Claim<EtcdSessions>,
    /// While it waits, its key is of another lease, with a short TTL: the key of a waiter that has
    /// died blocks those behind it for seconds, whatever its TTL.
    pub(crate) waiting: Option<Claim<EtcdSessions>>,
    pub(crate) request: Request,
    pub(crate) place: Arc<Place>,
}

impl PendingLock {
    pub(crate) async fn run(&self, step: Step) -> Result<Answer> {
        let of_waiters = matches!(step, Step::Enqueue { .. } | Step::Leave);
        let claims: Vec<_> = match &self.waiting {
            Some(waiting) if of_waiters && waiting.session().is_live() => {
                vec![waiting, &self.claim]
            }
            Some(waiting) => vec![&self.claim, waiting],
            None => vec![&self.claim],
        };
        session::run(&claims, "acquire", &self.place, step)
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
    pub(crate) async fn hold(&self, revision: i64) -> Result<i64> {
        if self.waiting.is_some() {
            let lease = self.claim.session().handle().lease;
            let answer = self.run(Step::Hold { lease, revision }).await?;
            if !answer.txn()?.succeeded() {
                return Err(lost_place());
            }
        }
        Ok(revision)
    }

    /// Makes a lease of it, if its session still stands.
    pub(crate) async fn granted(self, revision: i64) -> Result<Arc<dyn Lease>> {
        let now = self.request.now();
        if self.claim.valid_until().is_past(now) || !self.claim.hold(self.request.loss_notifier()) {
            self.leave().await;
            return Err(lost_place());
        }
        let Self {
            claim,
            waiting: _,
            request,
            place,
        } = self;
        Ok(Arc::new(EtcdLease::new(claim, request, place, revision)))
    }

    /// Takes its key away, whatever it stood for.
    pub(crate) async fn leave(&self) {
        let claims = || self.waiting.iter().chain([&self.claim]);
        if !claims().any(|claim| claim.session().is_live()) {
            // Their end on the server takes the key with it.
            return;
        }
        if let Err(error) = self.run(Step::Leave).await {
            tracing::debug!(target: "leasehold", key = ?self.place.key, %error, "not taken away; the next renewal does");
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
        watches: &Arc<WaiterRegistry>,
        revision: i64,
    ) -> Result<i64> {
        let Self {
            claim,
            request,
            place,
            ..
        } = self;
        let patience = cluster.patience(request.ttl());
        let watching = watches.on(&place.directory);
        let look = place.look(revision);
        let lease = claim.session().handle().lease;
        let (mut trouble, mut was_told) = (RetryBudget::none(), false);
        // Its place in the queue says so.
        request.set_contended();
        loop {
            // A watch that cannot be had leaves the fallback poll interval.
            let warm = watching.warm(UNWATCHED).await;
            let before = watching.generation();
            // Who is told that the key ahead is gone most likely holds now: one transaction instead
            // of two.
            let answer = if was_told && self.waiting.is_some() && place.mode == Mode::Exclusive {
                match self.run(Step::HoldIfFirst { lease, revision }).await {
                    Ok(Answer::Txn(answer)) if answer.succeeded() => return Ok(revision),
                    Ok(answer) => answer.txn().cloned(),
                    Err(error) => Err(error),
                }
            } else {
                cluster
                    .txn("acquire", error::Effect::None, patience, &look)
                    .await
            };
            let looked =
                match answer.and_then(|answer| place.looked(request.key(), revision, &answer)) {
                    Ok((Standing::Holds(revision), _)) => match self.hold(revision).await {
                        Err(error) => Err(error),
                        granted => return granted,
                    },
                    Ok((Standing::Absent, _)) => {
                        // Taken away, or expired with the session: never granted from here.
                        return Err(lost_place());
                    }
                    Ok((Standing::Waits(_), ahead)) => {
                        request.set_contended();
                        Ok(ahead)
                    }
                    Err(error) => Err(error),
                };
            let net = match looked {
                Ok(ahead) => {
                    trouble = RetryBudget::none();
                    let net = if warm.is_ok() {
                        cluster.config.fallback_poll_interval
                    } else {
                        UNWATCHED
                    };
                    Some((watching.gone(ahead, before), net))
                }
                Err(error) => {
                    trouble.spend(error, request)?;
                    None
                }
            };
            let woken = async {
                match net {
                    Some((gone, net)) => tokio::time::timeout(net, gone).await.is_ok(),
                    None => {
                        tokio::time::sleep(trouble.pause()).await;
                        false
                    }
                }
            };
            was_told = tokio::select! {
                told = woken => told,
                () = self.ended() => return Err(lost_place()),
                () = request.cancelled() => return Err(cancelled()),
            }
        }
    }
}

pub(crate) fn lost_place() -> Error {
    error::plain(
        ErrorKind::Lost,
        "acquire",
        "the session ended, or an operator took the place away, before it was granted",
    )
}

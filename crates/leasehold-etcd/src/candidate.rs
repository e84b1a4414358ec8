//! [`Candidate`]: an acquisition on its way.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Error, ErrorKind, Lease, Request, Result, Trouble,
    session::{Claim, cancelled},
};

use crate::{
    connection::Cluster,
    error,
    lease::EtcdLease,
    queue::{Answer, Place, Standing, Step},
    session::{self, EtcdSessions},
    wake::Watches,
};

/// How often a waiter looks that has no watch.
const UNWATCHED: Duration = Duration::from_millis(100);

/// An acquisition that has a place in a session, or is about to.
pub(crate) struct Candidate {
    pub(crate) claim: Claim<EtcdSessions>,
    pub(crate) request: Request,
    pub(crate) place: Arc<Place>,
}

impl Candidate {
    pub(crate) async fn run(&self, step: Step) -> Result<Answer> {
        session::run(&self.claim, "acquire", &self.place, step).await
    }

    /// Makes a lease of it, if its session still stands.
    pub(crate) async fn granted(self, revision: i64) -> Result<Arc<dyn Lease>> {
        let Self { claim, request, place } = self;
        let now = request.now();
        if claim.valid_until().is_past(now) || !claim.hold(request.loss_sink()) {
            let late = Self { claim, request, place };
            late.leave().await;
            return Err(lost_place());
        }
        Ok(Arc::new(EtcdLease::new(claim, request, place, revision)))
    }

    /// Takes its key away, whatever it stood for.
    pub(crate) async fn leave(&self) {
        let session = self.claim.session();
        if !session.is_live() {
            // Its end on the server takes the key with it.
            return;
        }
        if let Err(error) = self.run(Step::Leave).await {
            tracing::debug!(target: "leasehold", key = ?self.place.key, %error, "not taken away; the next renewal does");
            self.claim.retire();
            self.claim.doubt();
        }
    }

    /// Waits in the queue until it holds. Reads its own key after every wait: whatever woke it, only what the cluster says
    /// then counts.
    pub(crate) async fn wait(&self, cluster: &Arc<Cluster>, watches: &Arc<Watches>, revision: i64) -> Result<i64> {
        let Self { claim, request, place } = self;
        let patience = cluster.patience(request.ttl());
        let watching = watches.on(&place.directory);
        let look = place.look(revision);
        let mut trouble = Trouble::none();
        loop {
            // A watch that cannot be had leaves the safety net.
            let warm = watching.warm(patience).await;
            let before = watching.epoch();
            let looked = match cluster.txn("acquire", error::Effect::None, patience, &look).await {
                Ok(answer) => place.looked(request.key(), revision, &answer),
                Err(error) => Err(error),
            };
            let net = match looked {
                Ok((Standing::Holds(revision), _)) => return Ok(revision),
                Ok((Standing::Absent, _)) => {
                    // Taken away, or expired with the session: never granted from here.
                    return Err(lost_place());
                }
                Ok((Standing::Waits(_), ahead)) => {
                    trouble = Trouble::none();
                    let net = if warm.is_ok() { cluster.config.safety_net } else { UNWATCHED };
                    Some((watching.gone(ahead, before), net))
                }
                Err(error) => {
                    trouble.ride_out(error, request)?;
                    None
                }
            };
            let woken = async {
                match net {
                    Some((gone, net)) => drop(tokio::time::timeout(net, gone).await),
                    None => tokio::time::sleep(trouble.pause()).await,
                }
            };
            tokio::select! {
                () = woken => {}
                () = claim.session().ended() => return Err(lost_place()),
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

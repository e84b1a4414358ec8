//! [`Rollback`]: releases the nodes after a failed attempt.

use std::sync::Arc;

use crate::{
    backend::{
        attempt::Attempt,
        lease::{Lease, Released},
        request::Request,
    },
    error::Result,
    quorum::{attempt::QuorumAttempt, fan_out::FanOut, reply::NodeReply, state::QuorumState},
};

/// The releases of a failed attempt.
///
/// They go to the nodes that granted and to those that have not answered. A node that refused holds
/// no lock for the attempt. A node that failed undoes its attempt itself, as every backend must.
pub(super) struct Rollback {
    quorum: Arc<QuorumState>,
    request: Request,
    leases: Vec<Option<Arc<dyn Lease>>>,
    releases: FanOut<Released>,
    calls: FanOut<Attempt>,
}

impl Rollback {
    /// Sends the releases.
    pub(super) fn of(attempt: QuorumAttempt) -> Self {
        let QuorumAttempt {
            quorum,
            request,
            replies,
            calls,
            ..
        } = attempt;
        let mut releases = FanOut::with_capacity(replies.len());
        let mut leases = Vec::with_capacity(replies.len());
        for (node, reply) in replies.into_iter().enumerate() {
            let lease = match reply {
                NodeReply::Granted(lease) => {
                    releases.push(node, || Arc::clone(&lease).release());
                    Some(lease)
                }
                NodeReply::Pending => {
                    quorum.withdraw(node, &request, &mut releases);
                    None
                }
                NodeReply::Refused(_) | NodeReply::Failed(_) => None,
            };
            leases.push(lease);
        }
        let mut undo = Self {
            quorum,
            request,
            leases,
            releases,
            calls,
        };
        let Self {
            quorum,
            request,
            leases,
            releases,
            ..
        } = &mut undo;
        // These releases take effect before any request that is sent to the nodes later.
        releases.send(|node, released| settle(quorum, request, &leases[node], node, &released));
        undo
    }

    /// Finishes the releases and the pending calls.
    pub(super) fn in_background(self) {
        let Self {
            quorum,
            request,
            leases,
            releases,
            calls,
        } = self;
        let (judge, asked) = (Arc::clone(&quorum), request.clone());
        quorum.finish(releases, move |(node, released)| {
            settle(&judge, &asked, &leases[node], node, &released);
        });
        let judge = Arc::clone(&quorum);
        quorum.finish(calls, move |(node, answer)| {
            judge.members[node].learn(&answer, request.now());
            if let Ok(Attempt::Granted(lease)) = answer {
                // The withdrawal may have arrived before the grant.
                judge.release_detached(lease, &request);
            }
        });
    }
}

fn settle(
    quorum: &Arc<QuorumState>,
    request: &Request,
    lease: &Option<Arc<dyn Lease>>,
    node: usize,
    released: &Result<Released>,
) {
    quorum.members[node].learn(released, request.now());
    if let (Err(error), Some(lease)) = (released, lease)
        && error.is_retryable()
    {
        quorum.release_detached(Arc::clone(lease), request);
    }
}

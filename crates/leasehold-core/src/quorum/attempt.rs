//! One attempt: a request to all nodes, decided by the majority.
//!
//! Calls that are still running after the decision are finished in the background.

use std::sync::Arc;

use crate::{
    backend::{attempt::Attempt, request::Request},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    quorum::{
        contention::{self, AttemptHistory},
        deadline::validity,
        lease::QuorumLease,
        reply::NodeReply,
        rollback::Rollback,
        running_attempt::QuorumAttempt,
        state::QuorumState,
        tally::AttemptState,
        token,
    },
};

/// Sends one request to all nodes.
///
/// The request must have a new acquisition id, so that a late release of an earlier attempt never
/// releases a later one. `history` is the history of earlier attempts of this acquisition.
pub(super) async fn attempt(
    quorum: &Arc<QuorumState>,
    request: &Request,
    history: &AttemptHistory,
) -> Result<Attempt> {
    let began = request.now();
    let mut attempt = QuorumAttempt::begin(quorum, request);
    let state = attempt.majority().await;
    if state != AttemptState::Won {
        return attempt.fail(state, began, history);
    }
    let token = if quorum.has_tokens {
        match token::settle(&mut attempt).await {
            Ok(token) => Some(token),
            Err(problems) if problems.len() > quorum.majority.spare() => {
                attempt.undo();
                return Err(quorum.unavailable(&problems));
            }
            // Other acquisitions took nodes over during the write-back.
            Err(_) => return attempt.fail(AttemptState::Contended, began, history),
        }
    } else {
        None
    };
    let deadlines = attempt
        .replies
        .iter()
        .filter_map(NodeReply::lease)
        .map(|lease| lease.valid_until());
    match validity(deadlines, quorum.majority).filter(|validity| !validity.is_past(request.now())) {
        Some(validity) => {
            let QuorumAttempt {
                quorum,
                request,
                requirements,
                replies,
                calls,
                timeout,
                ..
            } = attempt;
            if request.waiting().keeps_waiting
                && replies
                    .iter()
                    .any(|reply| matches!(reply, NodeReply::Refused(_)))
            {
                quorum.stop_waiting_at(&request, |node| {
                    matches!(replies[node], NodeReply::Refused(_))
                });
            }
            let lease = QuorumLease::new(
                &quorum,
                request.clone(),
                requirements,
                token,
                validity,
                replies,
            );
            Arc::clone(&lease).adopt_late_grants(request, calls, timeout);
            if lease.has_missing_nodes() {
                lease.reacquire_in_background(timeout);
            }
            Ok(Attempt::Granted(lease))
        }
        None => {
            attempt.undo();
            Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "a majority granted, but not within the TTL of {}; give a longer TTL",
                    request.ttl()
                ),
            ))
        }
    }
}

impl QuorumAttempt {
    /// Releases all nodes, and returns why the attempt failed and when to retry.
    fn fail(
        mut self,
        state: AttemptState,
        began: Timestamp,
        history: &AttemptHistory,
    ) -> Result<Attempt> {
        let outcome = if state == AttemptState::Unreachable {
            // Nodes that have not answered are no problem before their timeout has passed.
            let problems = self
                .quorum
                .problems(&self.replies, self.over.then_some(self.timeout));
            Err(self.quorum.unavailable(&problems))
        } else {
            let took = self.request.now().since(began);
            Ok(Attempt::Contended(contention::of(
                self.quorum.majority,
                &mut self.replies,
                took,
                history,
            )))
        };
        self.undo();
        outcome
    }

    fn undo(self) {
        Rollback::of(self).in_background();
    }
}

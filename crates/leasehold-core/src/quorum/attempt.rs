//! One attempt: a request to all nodes, decided by the majority.
//!
//! Calls that are still running after the decision are finished in the background.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use crate::{
    backend::{
        attempt::{Attempt, Contention},
        lease::Lease,
        request::Request,
    },
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    quorum::{
        backend::QuorumBackend,
        contention::{self, AttemptHistory},
        deadline::validity,
        fan_out::FanOut,
        lease::QuorumLease,
        node::VoteRequirements,
        rollback::Rollback,
        tally::{AttemptState, Tally, Vote},
        token,
    },
};

/// The answer of a node so far.
pub(super) enum NodeReply {
    Pending,
    Granted(Arc<dyn Lease>),
    Refused(Contention),
    Failed(Error),
}

impl NodeReply {
    pub(super) const fn vote(&self) -> Vote {
        match self {
            Self::Pending => Vote::Pending,
            Self::Granted(_) => Vote::Granted,
            Self::Refused(_) => Vote::Refused,
            Self::Failed(_) => Vote::Failed,
        }
    }

    pub(super) fn lease(&self) -> Option<&Arc<dyn Lease>> {
        match self {
            Self::Granted(lease) => Some(lease),
            _ => None,
        }
    }
}

/// A running attempt.
pub(super) struct QuorumAttempt {
    pub(super) quorum: Arc<QuorumBackend>,
    /// The request as it is sent to the nodes.
    pub(super) request: Request,
    pub(super) requirements: VoteRequirements,
    pub(super) replies: Vec<NodeReply>,
    pub(super) calls: FanOut<Attempt>,
    pub(super) timeout: Duration,
    /// Whether the nodes' timeout has passed.
    over: bool,
}

/// Sends one request to all nodes.
///
/// The request must have a new acquisition id, so that a late release of an earlier attempt never
/// releases a later one. `history` is the history of earlier attempts of this acquisition.
pub(super) async fn attempt(
    quorum: &Arc<QuorumBackend>,
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
            if request.is_waiting()
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
    fn begin(quorum: &Arc<QuorumBackend>, request: &Request) -> Self {
        let (asked, requirements) = (request.for_node(), quorum.requirements());
        let nodes = quorum.members.len();
        let (mut replies, mut calls) = (Vec::with_capacity(nodes), FanOut::with_capacity(nodes));
        let now = request.now();
        // Without a majority of healthy nodes, ask all of them: some may have recovered.
        let well = quorum
            .members
            .iter()
            .filter(|member| !member.health.is_suspect())
            .count();
        let all = well < quorum.majority.needed();
        for (node, member) in quorum.members.iter().enumerate() {
            replies.push(if member.may_ask(now) || all && member.counts() {
                calls.push(node, || member.acquire(asked.clone(), requirements));
                NodeReply::Pending
            } else {
                NodeReply::Failed(member.skipped())
            });
        }
        let timeout = quorum.config.node_timeout(request.ttl());
        Self {
            quorum: Arc::clone(quorum),
            request: asked,
            requirements,
            replies,
            calls,
            timeout,
            over: false,
        }
    }

    /// Waits until the attempt is decided, or the nodes' timeout has passed.
    async fn majority(&mut self) -> AttemptState {
        let mut timer = pin!(tokio::time::sleep(self.timeout));
        poll_fn(|cx| {
            let Self {
                quorum,
                request,
                replies,
                calls,
                over,
                ..
            } = self;
            calls.poll(cx, |node, answer| {
                replies[node] = quorum.reply(node, answer, request);
            });
            let state = Tally::of(quorum.majority, replies.iter().map(NodeReply::vote)).state();
            if state != AttemptState::Pending {
                return Poll::Ready(state);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            *over = true;
            for node in calls.nodes() {
                quorum.members[node].late(self.timeout);
            }
            let late = |reply: &NodeReply| match reply.vote() {
                Vote::Pending => Vote::Failed,
                vote => vote,
            };
            Poll::Ready(Tally::of(quorum.majority, replies.iter().map(late)).state())
        })
        .await
    }

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

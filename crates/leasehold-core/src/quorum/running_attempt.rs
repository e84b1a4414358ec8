//! [`QuorumAttempt`]: a running attempt.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use crate::{
    backend::{attempt::Attempt, request::Request},
    quorum::{
        fan_out::FanOut,
        node::VoteRequirements,
        reply::NodeReply,
        state::QuorumState,
        tally::{AttemptState, Tally, Vote},
    },
};

/// A running attempt.
pub(super) struct QuorumAttempt {
    pub(super) quorum: Arc<QuorumState>,
    /// The request as it is sent to the nodes.
    pub(super) request: Request,
    pub(super) requirements: VoteRequirements,
    pub(super) replies: Vec<NodeReply>,
    pub(super) calls: FanOut<Attempt>,
    pub(super) timeout: Duration,
    /// Whether the nodes' timeout has passed.
    pub(super) over: bool,
}

impl QuorumAttempt {
    /// Sends the request to the nodes.
    pub(super) fn begin(quorum: &Arc<QuorumState>, request: &Request) -> Self {
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
    pub(super) async fn majority(&mut self) -> AttemptState {
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
}

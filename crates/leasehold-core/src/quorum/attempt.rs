//! One attempt: a request to all nodes, decided by the majority.
//!
//! Calls that are still running after the decision are finished in the background.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use crate::{
    backend::{
        contract::{Attempt, Contention, Lease},
        request::Request,
    },
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    quorum::{
        backend::QuorumBackend,
        contention::{self, Tries},
        deadline::validity,
        fan_out::FanOut,
        lease::QuorumLease,
        node::Terms,
        rollback::Undo,
        tally::{Standing, Tally, Vote},
        token,
    },
};

/// The answer of a node so far.
pub(super) enum Reply {
    Pending,
    Granted(Arc<dyn Lease>),
    Refused(Contention),
    Failed(Error),
}

impl Reply {
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
pub(super) struct Asking {
    pub(super) quorum: Arc<QuorumBackend>,
    /// The request as it is sent to the nodes.
    pub(super) request: Request,
    pub(super) terms: Terms,
    pub(super) replies: Vec<Reply>,
    pub(super) calls: FanOut<Attempt>,
    pub(super) timeout: Duration,
    /// Whether the nodes' timeout has passed.
    over: bool,
}

/// Sends one request to all nodes.
///
/// The request must have a new acquisition id, so that a late release of an earlier attempt never
/// releases a later one. `tries` is the history of earlier attempts of this acquisition.
pub(super) async fn attempt(
    quorum: &Arc<QuorumBackend>,
    request: &Request,
    tries: &Tries,
) -> Result<Attempt> {
    let began = request.now();
    let mut asking = Asking::begin(quorum, request);
    let standing = asking.majority().await;
    if standing != Standing::Won {
        return asking.fail(standing, began, tries);
    }
    let token = if quorum.has_tokens {
        match token::settle(&mut asking).await {
            Ok(token) => Some(token),
            Err(problems) if problems.len() > quorum.majority.spare() => {
                asking.undo();
                return Err(quorum.unavailable(&problems));
            }
            // Other acquisitions took nodes over during the write-back.
            Err(_) => return asking.fail(Standing::Contended, began, tries),
        }
    } else {
        None
    };
    let deadlines = asking
        .replies
        .iter()
        .filter_map(Reply::lease)
        .map(|lease| lease.valid_until());
    match validity(deadlines, quorum.majority).filter(|validity| !validity.is_past(request.now())) {
        Some(validity) => {
            let Asking {
                quorum,
                request,
                terms,
                replies,
                calls,
                timeout,
                ..
            } = asking;
            if request.is_waiting()
                && replies
                    .iter()
                    .any(|reply| matches!(reply, Reply::Refused(_)))
            {
                quorum.forget_at(&request, |node| matches!(replies[node], Reply::Refused(_)));
            }
            let lease = QuorumLease::new(&quorum, request.clone(), terms, token, validity, replies);
            Arc::clone(&lease).take_late_grants(request, calls, timeout);
            if lease.has_empty_seats() {
                lease.fill(timeout);
            }
            Ok(Attempt::Granted(lease))
        }
        None => {
            asking.undo();
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

impl Asking {
    fn begin(quorum: &Arc<QuorumBackend>, request: &Request) -> Self {
        let (asked, terms) = (request.for_node(), quorum.terms());
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
                calls.push(node, || member.acquire(asked.clone(), terms));
                Reply::Pending
            } else {
                Reply::Failed(member.skipped())
            });
        }
        let timeout = quorum.config.node_timeout(request.ttl());
        Self {
            quorum: Arc::clone(quorum),
            request: asked,
            terms,
            replies,
            calls,
            timeout,
            over: false,
        }
    }

    /// Waits until the attempt is decided, or the nodes' timeout has passed.
    async fn majority(&mut self) -> Standing {
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
                replies[node] = quorum.reply(node, answer, request)
            });
            let standing = Tally::of(quorum.majority, replies.iter().map(Reply::vote)).standing();
            if standing != Standing::Open {
                return Poll::Ready(standing);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            *over = true;
            for node in calls.nodes() {
                quorum.members[node].late(self.timeout);
            }
            let late = |reply: &Reply| match reply.vote() {
                Vote::Pending => Vote::Failed,
                vote => vote,
            };
            Poll::Ready(Tally::of(quorum.majority, replies.iter().map(late)).standing())
        })
        .await
    }

    /// Releases all nodes, and returns why the attempt failed and when to retry.
    fn fail(mut self, standing: Standing, began: Timestamp, tries: &Tries) -> Result<Attempt> {
        let outcome = if standing == Standing::OutOfReach {
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
                tries,
            )))
        };
        self.undo();
        outcome
    }

    fn undo(self) {
        Undo::of(self).in_background();
    }
}

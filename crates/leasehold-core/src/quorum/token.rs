//! The token of an attempt that a majority granted, found at once or by a write-back.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use crate::{
    backend::lease::BoxFuture,
    error::Result,
    fencing::FencingToken,
    quorum::{
        attempt::QuorumAttempt,
        fan_out::FanOut,
        node::TokenVote,
        reply::NodeReply,
        state::{Problems, no_answer},
        write_back::{RoundOutcome, TokenDecision, VoteReply, choose_token, evaluate_round},
    },
    telemetry,
};

/// Determines the token that a majority of the nodes has. An `Err` contains the nodes that failed.
/// No token is possible then, and everything must be released.
pub(super) async fn settle(
    attempt: &mut QuorumAttempt,
) -> std::result::Result<FencingToken, Problems> {
    let granted = attempt.replies.iter().filter_map(token_of);
    match choose_token(granted, attempt.quorum.majority) {
        Some(TokenDecision::Agreed(token)) => Ok(token),
        Some(TokenDecision::WriteBack(token)) => {
            telemetry::written_back(attempt.quorum.config.scheme);
            // Boxed, because the common case does not need its space.
            Box::pin(write_back(attempt, token)).await
        }
        None => Err(Problems::new()),
    }
}

async fn write_back(
    attempt: &mut QuorumAttempt,
    mut token: FencingToken,
) -> std::result::Result<FencingToken, Problems> {
    let (majority, requirements) = (attempt.quorum.majority, attempt.requirements);
    let nodes = attempt.replies.len();
    // The token that each node granted or accepted last.
    let mut at: Vec<_> = attempt.replies.iter().map(token_of).collect();
    // Calls of earlier rounds. Their answers no longer matter, but no call is dropped.
    let mut superseded = FanOut::with_capacity(nodes);
    let mut timer = pin!(tokio::time::sleep(attempt.timeout));
    let mut over = false;
    let settled = loop {
        let mut raises = FanOut::with_capacity(nodes);
        let mut failures = Problems::new();
        let mut answers: Vec<_> = attempt
            .replies
            .iter()
            .enumerate()
            .map(|(node, reply)| match reply {
                NodeReply::Pending => VoteReply::Pending,
                NodeReply::Granted(_) => ask(&mut raises, node, at[node], token, || {
                    attempt.quorum.members[node].raise(attempt.request.clone(), requirements, token)
                }),
                NodeReply::Refused(_) | NodeReply::Failed(_) => VoteReply::Gone,
            })
            .collect();
        let outcome = poll_fn(|cx| {
            let QuorumAttempt {
                quorum,
                request,
                replies,
                calls,
                timeout,
                ..
            } = &mut *attempt;
            calls.poll(cx, |node, answer| {
                let reply = quorum.reply(node, answer, request);
                at[node] = token_of(&reply);
                answers[node] = match &reply {
                    NodeReply::Granted(_) => ask(&mut raises, node, at[node], token, || {
                        quorum.members[node].raise(request.clone(), requirements, token)
                    }),
                    _ => VoteReply::Gone,
                };
                replies[node] = reply;
            });
            raises.poll(cx, |node, vote: Result<TokenVote>| {
                quorum.members[node].learn(&vote, request.now());
                if matches!(vote, Ok(TokenVote::Accepted)) {
                    at[node] = Some(token);
                }
                answers[node] = match vote {
                    Ok(vote) => VoteReply::from(vote),
                    Err(error) => {
                        failures.push((node, error));
                        VoteReply::Gone
                    }
                };
            });
            let outcome = evaluate_round(token, answers.iter().copied(), majority);
            if outcome != RoundOutcome::Pending {
                return Poll::Ready(outcome);
            }
            if !over && timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            over = true;
            for node in calls.nodes().chain(raises.nodes()) {
                quorum.members[node].late(*timeout);
            }
            let late = answers.iter().map(|answer| {
                if *answer == VoteReply::Pending {
                    VoteReply::Gone
                } else {
                    *answer
                }
            });
            Poll::Ready(evaluate_round(token, late, majority))
        })
        .await;
        let silent: Vec<_> = raises.nodes().filter(|_| over).collect();
        superseded.append(raises);
        match outcome {
            RoundOutcome::Agreed => break Ok(token),
            RoundOutcome::Retry(next) => token = next,
            RoundOutcome::Pending | RoundOutcome::Lost => {
                let timeout = attempt.timeout;
                let mut problems = attempt
                    .quorum
                    .problems(&attempt.replies, over.then_some(timeout));
                problems.extend(failures);
                problems.extend(silent.into_iter().map(|node| (node, no_answer(timeout))));
                break Err(problems);
            }
        }
    };
    let (quorum, request) = (Arc::clone(&attempt.quorum), attempt.request.clone());
    attempt.quorum.finish(superseded, move |(node, vote)| {
        quorum.members[node].learn(&vote, request.now());
    });
    settled
}

/// Asks a node to raise its token to `token`, unless its token is at least that.
fn ask(
    raises: &mut FanOut<TokenVote>,
    node: usize,
    at: Option<FencingToken>,
    token: FencingToken,
    raise: impl FnOnce() -> BoxFuture<'static, Result<TokenVote>>,
) -> VoteReply {
    match at {
        Some(at) if at == token => VoteReply::Accepted,
        Some(at) if at > token => VoteReply::Higher(at),
        _ => {
            raises.push(node, raise);
            VoteReply::Pending
        }
    }
}

fn token_of(reply: &NodeReply) -> Option<FencingToken> {
    reply.lease().and_then(|lease| lease.fencing_token())
}

//! The token of an attempt that a majority granted, found at once or by a write-back.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use crate::{
    backend::contract::BoxFuture,
    error::Result,
    fencing::FencingToken,
    quorum::{
        attempt::{Asking, Reply},
        backend::{Problems, no_answer},
        fan_out::FanOut,
        node::TokenVote,
        write_back::{Answer, Round, TokenChoice, choose, round},
    },
    telemetry,
};

/// Determines the token that a majority of the nodes has. An `Err` contains the nodes that failed.
/// No token is possible then, and everything must be released.
pub(super) async fn settle(asking: &mut Asking) -> std::result::Result<FencingToken, Problems> {
    let granted = asking.replies.iter().filter_map(token_of);
    match choose(granted, asking.quorum.majority) {
        Some(TokenChoice::Stands(token)) => Ok(token),
        Some(TokenChoice::WriteBack(token)) => {
            telemetry::written_back(asking.quorum.config.scheme);
            // Boxed, because the common case does not need its space.
            Box::pin(write_back(asking, token)).await
        }
        None => Err(Problems::new()),
    }
}

async fn write_back(
    asking: &mut Asking,
    mut token: FencingToken,
) -> std::result::Result<FencingToken, Problems> {
    let (majority, terms) = (asking.quorum.majority, asking.terms);
    let nodes = asking.replies.len();
    // The token that each node granted or accepted last.
    let mut at: Vec<_> = asking.replies.iter().map(token_of).collect();
    // Calls of earlier rounds. Their answers no longer matter, but no call is dropped.
    let mut superseded = FanOut::with_capacity(nodes);
    let mut timer = pin!(tokio::time::sleep(asking.timeout));
    let mut over = false;
    let settled = loop {
        let mut raises = FanOut::with_capacity(nodes);
        let mut failures = Problems::new();
        let mut answers: Vec<_> = asking
            .replies
            .iter()
            .enumerate()
            .map(|(node, reply)| match reply {
                Reply::Pending => Answer::Pending,
                Reply::Granted(_) => ask(&mut raises, node, at[node], token, || {
                    asking.quorum.members[node].raise(asking.request.clone(), terms, token)
                }),
                Reply::Refused(_) | Reply::Failed(_) => Answer::Gone,
            })
            .collect();
        let outcome = poll_fn(|cx| {
            let Asking {
                quorum,
                request,
                replies,
                calls,
                timeout,
                ..
            } = &mut *asking;
            calls.poll(cx, |node, answer| {
                let reply = quorum.reply(node, answer, request);
                at[node] = token_of(&reply);
                answers[node] = match &reply {
                    Reply::Granted(_) => ask(&mut raises, node, at[node], token, || {
                        quorum.members[node].raise(request.clone(), terms, token)
                    }),
                    _ => Answer::Gone,
                };
                replies[node] = reply;
            });
            raises.poll(cx, |node, vote: Result<TokenVote>| {
                quorum.members[node].learn(&vote, request.now());
                if matches!(vote, Ok(TokenVote::Accepted)) {
                    at[node] = Some(token);
                }
                answers[node] = match vote {
                    Ok(vote) => Answer::from(vote),
                    Err(error) => {
                        failures.push((node, error));
                        Answer::Gone
                    }
                };
            });
            let outcome = round(token, answers.iter().copied(), majority);
            if outcome != Round::Open {
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
                if *answer == Answer::Pending {
                    Answer::Gone
                } else {
                    *answer
                }
            });
            Poll::Ready(round(token, late, majority))
        })
        .await;
        let silent: Vec<_> = raises.nodes().filter(|_| over).collect();
        superseded.append(raises);
        match outcome {
            Round::Stands => break Ok(token),
            Round::Again(next) => token = next,
            Round::Open | Round::Lost => {
                let timeout = asking.timeout;
                let mut problems = asking
                    .quorum
                    .problems(&asking.replies, over.then_some(timeout));
                problems.extend(failures);
                problems.extend(silent.into_iter().map(|node| (node, no_answer(timeout))));
                break Err(problems);
            }
        }
    };
    let (quorum, request) = (Arc::clone(&asking.quorum), asking.request.clone());
    asking.quorum.finish(superseded, move |(node, vote)| {
        quorum.members[node].learn(&vote, request.now())
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
) -> Answer {
    match at {
        Some(at) if at == token => Answer::Stands,
        Some(at) if at > token => Answer::Higher(at),
        _ => {
            raises.push(node, raise);
            Answer::Pending
        }
    }
}

fn token_of(reply: &Reply) -> Option<FencingToken> {
    reply.lease().and_then(|lease| lease.fencing_token())
}

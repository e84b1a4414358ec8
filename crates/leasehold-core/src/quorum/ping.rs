//! The ping of a quorum.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::{
    backend::inspection::{NodeStatus, Pong},
    error::Result,
    quorum::{
        state::QuorumState,
        timeout::{STATE_TIMEOUT, within},
    },
};

/// Pings all nodes. Fails unless a majority answers.
pub(super) async fn ping(quorum: &QuorumState) -> Result<Pong> {
    let answers = join_all(quorum.members.iter().map(|member| {
        let backend = Arc::clone(&member.backend);
        within(STATE_TIMEOUT, async move { backend.ping().await })
    }));
    let (mut nodes, mut problems) = (Vec::new(), Vec::new());
    for (node, answer) in answers.await.into_iter().enumerate() {
        let problem = answer
            .as_ref()
            .err()
            .map(|error| error.message().to_owned());
        nodes.push(NodeStatus::new(&*quorum.members[node].endpoint, problem));
        problems.extend(answer.err().map(|error| (node, error)));
    }
    if problems.len() > quorum.majority.spare() {
        return Err(quorum.unavailable(&problems).with_operation("ping"));
    }
    Ok(Pong::new().with_nodes(nodes))
}

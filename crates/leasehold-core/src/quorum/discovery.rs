//! Discovery: reads the state of the nodes before a quorum is used.

use futures_util::future::join_all;

use crate::{
    error::{Error, ErrorKind, Result},
    quorum::{config::QuorumConfig, member::Member, node::NodeState, tally::Majority},
    ttl::Ttl,
};

/// The result of the discovery.
pub(super) struct Discovery {
    /// Whether a node has an epoch record.
    pub(super) provisioned: bool,
    /// Whether all nodes with an epoch record are durable.
    pub(super) durable: bool,
    /// Whether all nodes answered and may vote on tokens.
    pub(super) all_vote: bool,
    pub(super) largest_ttl: Ttl,
}

/// Reads the state of all nodes that can vote on tokens. Other nodes are assumed to be healthy.
pub(super) async fn ask(members: &[Member], config: &QuorumConfig) -> Result<Discovery> {
    let answers = read_states(members).await;
    let spare = Majority::of(members.len()).spare();
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for (node, answer) in answers.into_iter().enumerate() {
        match answer {
            Some(Ok(recollection)) => {
                // Duplicate servers among the nodes are rejected below.
                members[node].set_duplicate(None);
                found.push(recollection);
            }
            Some(Err(error)) => {
                members[node].unusable(&error);
                problems.push((node, error));
            }
            None => {}
        }
    }
    let mut runs: Vec<_> = found
        .iter()
        .map(|node| node.incarnation.as_str())
        .filter(|incarnation| !incarnation.is_empty())
        .collect();
    runs.sort_unstable();
    if runs.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "two of the nodes are the same server; a quorum needs independent ones",
        )
        .with_backend(config.scheme)
        .with_operation("connect"));
    }
    if problems.len() > spare {
        return Err(unavailable(members, &problems, config.scheme).with_operation("connect"));
    }
    let provisioned: Vec<_> = found
        .iter()
        .filter(|node| node.recorded.is_some())
        .collect();
    Ok(Discovery {
        all_vote: problems.is_empty() && found.iter().all(NodeState::votes),
        durable: !provisioned.is_empty() && provisioned.iter().all(|node| node.durable),
        largest_ttl: provisioned
            .iter()
            .filter_map(|node| node.largest_ttl)
            .max()
            .unwrap_or(config.largest_ttl),
        provisioned: !provisioned.is_empty(),
    })
}

/// Reads the state of each node. The result is `None` for a node that cannot vote on tokens.
pub(super) async fn read_states(members: &[Member]) -> Vec<Option<Result<NodeState>>> {
    join_all(members.iter().map(Member::read_state)).await
}

/// Returns an error such as `3 of 5 unavailable: …`. It has the kind of the nodes' errors if they
/// all have the same kind and cannot be retried.
pub(super) fn unavailable(
    members: &[Member],
    problems: &[(usize, Error)],
    scheme: &'static str,
) -> Error {
    let mut message = format!("{} of {} unavailable: ", problems.len(), members.len());
    for (at, (node, error)) in problems.iter().enumerate() {
        let separator = if at == 0 { "" } else { "; " };
        let endpoint = &*members[*node].endpoint;
        // Some errors name the endpoint already.
        let named = if error.message().contains(endpoint) {
            String::new()
        } else {
            format!("{endpoint}: ")
        };
        message.push_str(&format!("{separator}{named}{}", error.message()));
    }
    let agreed = problems
        .first()
        .map(|(_, first)| first.kind())
        .filter(|kind| {
            problems
                .iter()
                .all(|(_, error)| error.kind() == *kind && !error.is_retryable())
        });
    // The error has no source, because the message contains the messages of all nodes.
    Error::new(agreed.unwrap_or(ErrorKind::Unavailable), message).with_backend(scheme)
}

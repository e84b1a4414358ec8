//! What a quorum learns of its nodes before it is used.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    error::{Error, ErrorKind, Result},
    panics::contained,
    quorum::{config::QuorumConfig, member::Member, node::Recollection, tally::Majority},
    ttl::Ttl,
};

/// How long a node may take to say what it remembers. One that does not is found out later.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// What the nodes said.
pub(super) struct Found {
    /// Some node carries the mark of an attestation.
    pub(super) marked: bool,
    /// All that execute such a mark lose no token in a restart.
    pub(super) durable: bool,
    /// All answered, and vote on tokens.
    pub(super) all_vote: bool,
    pub(super) largest_ttl: Ttl,
}

/// Asks all nodes that vote on tokens what they remember; the others are taken to be well.
pub(super) async fn ask(members: &[Member], config: &QuorumConfig) -> Result<Found> {
    let answers = recall_all(members).await;
    let spare = Majority::of(members.len()).spare();
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for (node, answer) in answers.into_iter().enumerate() {
        match answer {
            Some(Ok(recollection)) => {
                // Below, doubles among them are refused.
                members[node].set_double(None);
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
        .map(|node| node.run.as_str())
        .filter(|run| !run.is_empty())
        .collect();
    runs.sort_unstable();
    if runs.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "two of the nodes are one and the same server; a quorum needs independent ones",
        )
        .with_backend(config.scheme)
        .with_operation("connect"));
    }
    if problems.len() > spare {
        return Err(unavailable(members, &problems, config.scheme).with_operation("connect"));
    }
    let marked: Vec<_> = found.iter().filter(|node| node.marked.is_some()).collect();
    Ok(Found {
        all_vote: problems.is_empty() && found.iter().all(Recollection::votes),
        durable: !marked.is_empty() && marked.iter().all(|node| node.durable),
        largest_ttl: marked
            .iter()
            .filter_map(|node| node.largest_ttl)
            .max()
            .unwrap_or(config.largest_ttl),
        marked: !marked.is_empty(),
    })
}

/// Each node's answer; `None` for one that does not vote on tokens.
pub(super) async fn recall_all(members: &[Member]) -> Vec<Option<Result<Recollection>>> {
    join_all(members.iter().map(Member::recall)).await
}

/// Waits so long for a call, which is not dropped if it takes longer.
pub(super) async fn within<T: Send + 'static>(
    patience: Duration,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(patience, tokio::spawn(contained(call))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Error::new(ErrorKind::Unavailable, "the runtime shuts down")),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("no answer within {patience:?}"),
        )),
    }
}

/// `3 of 5 unavailable: …`, of the nodes' own kind if they agree on one that no other attempt would
/// change.
pub(super) fn unavailable(
    members: &[Member],
    problems: &[(usize, Error)],
    scheme: &'static str,
) -> Error {
    let mut message = format!("{} of {} unavailable: ", problems.len(), members.len());
    for (at, (node, error)) in problems.iter().enumerate() {
        let separator = if at == 0 { "" } else { "; " };
        let endpoint = &*members[*node].endpoint;
        // Some errors name it.
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
    // Without a source: the message says all that the nodes' errors say.
    Error::new(agreed.unwrap_or(ErrorKind::Unavailable), message).with_backend(scheme)
}

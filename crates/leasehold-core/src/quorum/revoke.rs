//! The revocation of a lock on a quorum.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use crate::{
    backend::inspection::{HolderRef, Revocation, RevokeOutcome},
    error::{Error, ErrorKind, Result},
    quorum::{
        inspect::{decode, has_same_label},
        state::QuorumState,
        timeout::within,
    },
    ttl::Ttl,
};

/// The number of times that all nodes are inspected again after the holder was removed from the
/// nodes that showed it. A concurrent renewal may have acquired nodes again meanwhile.
const PASSES: usize = 2;

/// Revokes the lock of `holder` on every node, including nodes that did not show the holder.
/// Succeeds only if the holder no longer has a majority, counting nodes that did not answer as
/// held.
pub(super) async fn revoke(
    quorum: &QuorumState,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    let ids = decode(&holder.id)
        .filter(|ids| ids.len() == quorum.members.len())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "this holder does not come from an inspection of this quorum; inspect the key again",
            )
            .with_backend(quorum.config.scheme)
            .with_operation("revoke")
        })?;
    let revoker = Revoker {
        quorum,
        holder,
        revocation,
        timeout: quorum.config.node_timeout(Ttl::DEFAULT),
    };
    let mut outcome = Outcome::nothing(ids.len());
    let shown = ids
        .into_iter()
        .enumerate()
        .map(async |(node, id)| match id {
            Some(id) => Some(revoker.at(node, id).await),
            None => Some(
                revoker
                    .at_any_id(node)
                    .await
                    .unwrap_or_else(|| Err(unclear())),
            ),
        });
    outcome.note(join_all(shown).await);
    for _ in 0..PASSES {
        let anything = outcome
            .note(join_all((0..quorum.members.len()).map(|node| revoker.at_any_id(node))).await);
        if !anything {
            break;
        }
    }
    outcome.conclude(quorum)
}

struct Revoker<'a> {
    quorum: &'a QuorumState,
    holder: &'a HolderRef,
    revocation: Revocation,
    timeout: Duration,
}

impl Revoker<'_> {
    /// Revokes the lock on a node that knows the holder by this id.
    async fn at(&self, node: usize, id: Vec<u8>) -> Result<RevokeOutcome> {
        let mut there = self.holder.clone();
        there.id = id;
        let (backend, revocation) = (
            Arc::clone(&self.quorum.members[node].backend),
            self.revocation,
        );
        within(self.timeout, async move {
            backend.revoke(&there, revocation).await
        })
        .await
    }

    /// Revokes the lock on a node that may know the holder by any id. Returns `None` if the node
    /// cannot distinguish the holder from a newer one with the same label.
    async fn at_any_id(&self, node: usize) -> Option<Result<RevokeOutcome>> {
        let (backend, key) = (
            Arc::clone(&self.quorum.members[node].backend),
            self.holder.key.clone(),
        );
        let there = match within(self.timeout, async move { backend.inspect(&key).await }).await {
            Ok(inspection) => inspection.holders,
            Err(error) => return Some(Err(error)),
        };
        let mut unclear = false;
        for there in there
            .into_iter()
            .filter(|there| there.mode == self.holder.mode)
        {
            match there.owner.zip(self.holder.owner) {
                Some((owner, ours)) if owner.is_same_acquisition(ours) => {
                    return Some(self.at(node, there.id).await);
                }
                Some(_) => {}
                None => unclear |= has_same_label(&there, self.holder),
            }
        }
        if unclear {
            None
        } else {
            Some(Ok(RevokeOutcome::AlreadyGone))
        }
    }
}

fn unclear() -> Error {
    Error::new(
        ErrorKind::Indeterminate,
        "the node may be locked by the same holder; inspect the key again",
    )
}

/// The result of the revocation so far.
struct Outcome {
    freed: bool,
    /// If the lock can no longer be renewed, the time for which it is still held.
    marked: Option<Option<Duration>>,
    /// The errors of nodes on which the holder may still hold the lock.
    problems: Vec<Option<Error>>,
}

impl Outcome {
    fn nothing(nodes: usize) -> Self {
        Self {
            freed: false,
            marked: None,
            problems: vec![None; nodes],
        }
    }

    /// Adds one answer per node, where `None` changes nothing. Returns whether any lock was freed.
    fn note(&mut self, answers: Vec<Option<Result<RevokeOutcome>>>) -> bool {
        let mut freed = false;
        for (problem, answer) in self.problems.iter_mut().zip(answers) {
            match answer {
                Some(Ok(revoked)) => {
                    *problem = None;
                    freed |= revoked == RevokeOutcome::Freed;
                    if let RevokeOutcome::FreeWithin(left) = revoked {
                        self.marked = self.marked.max(Some(left));
                    }
                }
                Some(Err(error)) => *problem = Some(error),
                None => {}
            }
        }
        self.freed |= freed;
        freed
    }

    fn conclude(self, quorum: &QuorumState) -> Result<RevokeOutcome> {
        let problems: Vec<_> = self
            .problems
            .into_iter()
            .enumerate()
            .filter_map(|(node, problem)| Some((node, problem?)))
            .collect();
        if problems.len() > quorum.majority.spare() {
            return Err(quorum.unavailable(&problems).with_operation("revoke"));
        }
        Ok(match self.marked {
            Some(left) => RevokeOutcome::FreeWithin(left),
            None if self.freed => RevokeOutcome::Freed,
            None => RevokeOutcome::AlreadyGone,
        })
    }
}

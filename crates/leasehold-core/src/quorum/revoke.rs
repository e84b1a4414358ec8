//! Taking a lock from its holder on every node.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use crate::{
    error::{Error, ErrorKind, Result},
    inspection::{HolderRef, Revocation, RevokeOutcome},
    quorum::{
        backend::QuorumBackend,
        discovery::within,
        inspect::{decode, has_same_label},
    },
    ttl::Ttl,
};

/// How often all nodes are looked through once the holder is taken from where it was shown: a
/// renewal that was under way may have healed nodes behind us.
const PASSES: usize = 2;

/// Takes the lock from the holder wherever it holds, also at nodes that did not show it. `Ok` only
/// if the majority cannot be the holder's any more: a node that did not answer may be.
pub(super) async fn revoke(
    quorum: &QuorumBackend,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    let ids = decode(&holder.id)
        .filter(|ids| ids.len() == quorum.members.len())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "this holder is not one that this quorum has shown; inspect it again",
            )
            .with_backend(quorum.config.scheme)
            .with_operation("break")
        })?;
    let taking = Taking {
        quorum,
        holder,
        revocation,
        patience: quorum.config.node_timeout(Ttl::DEFAULT),
    };
    let mut taken = Taken::nothing(ids.len());
    let shown = ids
        .into_iter()
        .enumerate()
        .map(async |(node, id)| match id {
            Some(id) => Some(taking.at(node, id).await),
            None => Some(
                taking
                    .wherever(node)
                    .await
                    .unwrap_or_else(|| Err(unclear())),
            ),
        });
    taken.note(join_all(shown).await);
    for _ in 0..PASSES {
        let anything =
            taken.note(join_all((0..quorum.members.len()).map(|node| taking.wherever(node))).await);
        if !anything {
            break;
        }
    }
    taken.conclude(quorum)
}

struct Taking<'a> {
    quorum: &'a QuorumBackend,
    holder: &'a HolderRef,
    revocation: Revocation,
    patience: Duration,
}

impl Taking<'_> {
    /// At a node that knows the holder by this identity.
    async fn at(&self, node: usize, id: Vec<u8>) -> Result<RevokeOutcome> {
        let mut there = self.holder.clone();
        there.id = id;
        let (backend, revocation) = (
            Arc::clone(&self.quorum.members[node].backend),
            self.revocation,
        );
        within(self.patience, async move {
            backend.revoke(&there, revocation).await
        })
        .await
    }

    /// At a node that may know the holder by any identity. `None`: it cannot tell it from a newer
    /// holder of the same label.
    async fn wherever(&self, node: usize) -> Option<Result<RevokeOutcome>> {
        let (backend, key) = (
            Arc::clone(&self.quorum.members[node].backend),
            self.holder.key.clone(),
        );
        let there = match within(self.patience, async move { backend.inspect(&key).await }).await {
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
        "it may hold for the same holder; inspect it again",
    )
}

/// What has come of it so far.
struct Taken {
    freed: bool,
    /// It cannot be renewed any more: for how long it is still held.
    marked: Option<Option<Duration>>,
    /// Where the holder may still hold.
    problems: Vec<Option<Error>>,
}

impl Taken {
    fn nothing(nodes: usize) -> Self {
        Self {
            freed: false,
            marked: None,
            problems: vec![None; nodes],
        }
    }

    /// One answer per node; `None` changes nothing. Whether anything was freed.
    fn note(&mut self, answers: Vec<Option<Result<RevokeOutcome>>>) -> bool {
        let mut freed = false;
        for (problem, answer) in self.problems.iter_mut().zip(answers) {
            match answer {
                Some(Ok(broken)) => {
                    *problem = None;
                    freed |= broken == RevokeOutcome::Freed;
                    if let RevokeOutcome::FreeWithin(left) = broken {
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

    fn conclude(self, quorum: &QuorumBackend) -> Result<RevokeOutcome> {
        let problems: Vec<_> = self
            .problems
            .into_iter()
            .enumerate()
            .filter_map(|(node, problem)| Some((node, problem?)))
            .collect();
        if problems.len() > quorum.majority.spare() {
            return Err(quorum.unavailable(&problems).with_operation("break"));
        }
        Ok(match self.marked {
            Some(left) => RevokeOutcome::FreeWithin(left),
            None if self.freed => RevokeOutcome::Freed,
            None => RevokeOutcome::AlreadyGone,
        })
    }
}

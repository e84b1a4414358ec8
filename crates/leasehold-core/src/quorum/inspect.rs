//! The holders and waiters of a key on a majority of the nodes.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::{
    backend::inspection::{HolderRef, Inspection, NodeStatus, WaiterRef},
    error::Result,
    key::LockKey,
    quorum::{state::QuorumState, timeout::within},
    ttl::Ttl,
};

/// Marks a node that does not know the holder.
const ABSENT: u16 = u16::MAX;

/// A holder, with its id on each node.
struct SeenHolder {
    holder: HolderRef,
    backend: &'static str,
    ids: Vec<Option<Vec<u8>>>,
}

pub(super) async fn inspect(quorum: &QuorumState, key: &LockKey) -> Result<Inspection> {
    let timeout = quorum.config.node_timeout(Ttl::DEFAULT);
    let answers = join_all(quorum.members.iter().map(|member| {
        let (backend, key) = (Arc::clone(&member.backend), key.clone());
        within(timeout, async move { backend.inspect(&key).await })
    }))
    .await;
    let nodes = answers.len();
    let (mut seen, mut waiters, mut problems) = (
        Vec::<SeenHolder>::new(),
        Vec::<WaiterRef>::new(),
        Vec::new(),
    );
    let mut statuses = Vec::with_capacity(nodes);
    for (node, answer) in answers.into_iter().enumerate() {
        let member = &quorum.members[node];
        match answer {
            Ok(Inspection {
                holders,
                waiters: waiting,
                ..
            }) => {
                let backend = member.backend.capabilities().backend;
                for holder in holders {
                    count(&mut seen, holder, backend, node, nodes);
                }
                for waiter in waiting {
                    if !waiters.contains(&waiter) {
                        waiters.push(waiter);
                    }
                }
                statuses.push(member.status());
            }
            Err(error) => {
                statuses.push(NodeStatus::new(
                    &*member.endpoint,
                    Some(error.message().to_owned()),
                ));
                problems.push((node, error));
            }
        }
    }
    if problems.len() > quorum.majority.spare() {
        return Err(quorum.unavailable(&problems).with_operation("inspect"));
    }
    seen.retain(|seen| seen.ids.iter().flatten().count() >= quorum.majority.needed());
    let holders = seen.into_iter().map(
        |SeenHolder {
             mut holder, ids, ..
         }| {
            holder.id = encode(&ids);
            holder
        },
    );
    let mut inspection = Inspection::new(holders.collect(), waiters);
    inspection.nodes = statuses;
    Ok(inspection)
}

/// Adds a node's holder to the same holder of other nodes. Holders are the same if their
/// acquisition is the same or, on nodes that do not know the acquisition, if their labels are
/// equal.
fn count(
    seen: &mut Vec<SeenHolder>,
    holder: HolderRef,
    backend: &'static str,
    node: usize,
    nodes: usize,
) {
    let same = |known: &&mut SeenHolder| {
        known.ids[node].is_none()
            && known.holder.mode == holder.mode
            && match (known.holder.owner, holder.owner) {
                (Some(known), Some(owner)) => known.is_same_acquisition(owner),
                _ if known.backend == backend && known.holder.id == holder.id => true,
                _ => has_same_label(&known.holder, &holder),
            }
    };
    if let Some(known) = seen.iter_mut().find(same) {
        known.ids[node] = Some(holder.id);
        // The time after which a majority may be free, unless the lock is renewed.
        known.holder.expires_in = known.holder.expires_in.max(holder.expires_in);
        known.holder.token = known.holder.token.max(holder.token);
        known.holder.owner = known.holder.owner.or(holder.owner);
        return;
    }
    let mut ids = vec![None; nodes];
    ids[node] = Some(holder.id.clone());
    seen.push(SeenHolder {
        holder,
        backend,
        ids,
    });
}

/// Returns whether two holders have the same label, which identifies holders on nodes that do not
/// know the acquisition.
pub(super) fn has_same_label(one: &HolderRef, other: &HolderRef) -> bool {
    !one.label.is_empty() && one.label == other.label
}

/// Encodes the ids one after the other, each preceded by its length.
fn encode(ids: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in ids {
        // No backend has ids of that length.
        let length = id
            .as_ref()
            .map_or(ABSENT, |id| u16::try_from(id.len()).unwrap_or(ABSENT));
        bytes.extend(length.to_be_bytes());
        if length != ABSENT {
            bytes.extend(id.as_deref().unwrap_or_default());
        }
    }
    bytes
}

pub(super) fn decode(mut bytes: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let mut ids = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk()?;
        bytes = rest;
        ids.push(match u16::from_be_bytes(*length) {
            ABSENT => None,
            length => {
                let (id, rest) = bytes.split_at_checked(usize::from(length))?;
                bytes = rest;
                Some(id.to_vec())
            }
        });
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holder_ids_are_decoded() {
        let ids = vec![
            Some(b"a".to_vec()),
            None,
            Some(Vec::new()),
            Some(vec![0xff; 300]),
        ];
        assert_eq!(decode(&encode(&ids)), Some(ids));
        assert_eq!(decode(b"\0\x05abc"), None);
    }
}

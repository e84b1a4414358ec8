//! Revokes the lock of a holder that an inspection showed.

use std::time::Duration;

use leasehold_core::{
    ErrorKind, HolderRef, Mode, Result, Revocation, RevokeOutcome, text::parse_exact,
};
use zookeeper_client::{Error as Driver, Stat};

use crate::{
    connection::Cluster,
    error::{ERRORS, SideEffect, unless_gone},
    keys::Member,
    node_data::{Data, REVOKE},
};

/// The most attempts of a graceful revocation. About every second one fails if the leader of an
/// election replaces its proposal without a pause.
const TRIES: usize = 32;

/// Returns the identifier of one grant: the czxid and the name of its node.
pub(crate) fn id_of(stat: &Stat, name: &str) -> Vec<u8> {
    format!("{}:{name}", stat.czxid).into_bytes()
}

pub(crate) fn read_id(id: &[u8]) -> Option<(i64, &str)> {
    let (czxid, name) = std::str::from_utf8(id).ok()?.split_once(':')?;
    Some((parse_exact(czxid)?, name))
}

/// Revokes the lock of `holder`.
///
/// With [`Revocation::Immediate`] it deletes the holder's node, if that is still the same node.
/// Otherwise it writes Curator's request for a revocation into the node. A holder of Leasehold
/// reads the request at once, and its deadline does not move after that.
pub(crate) async fn revoke(
    cluster: &Cluster,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    let invalid = || {
        ERRORS.error(
            ErrorKind::InvalidInput,
            "revoke",
            "this holder was not shown by an inspection of ZooKeeper",
        )
    };
    let (czxid, name) = read_id(&holder.id).ok_or_else(invalid)?;
    let member = Member::read(name)
        .filter(|_| !name.contains('/'))
        .ok_or_else(invalid)?;
    let permit = matches!(holder.mode, Some(Mode::Permit { .. }));
    let path = cluster.names.directory(&holder.key, permit).child(name);
    if revocation == Revocation::Graceful && !member.is_ours() {
        return Err(ERRORS.error(
            ErrorKind::Unsupported,
            "revoke",
            "another program holds it, which may not notice; use an immediate revocation",
        ));
    }
    let (link, patience) = (cluster.shared("revoke").await?, cluster.config.timeout);
    for _ in 0..TRIES {
        let read = cluster.read("revoke", &link, patience, &path).await?;
        let Some((data, stat)) = read.filter(|(_, stat)| stat.czxid == czxid) else {
            return Ok(RevokeOutcome::AlreadyGone);
        };
        if revocation == Revocation::Immediate {
            // Names are never reused, so this is the node that was read.
            let deleted = async { unless_gone(link.client.delete(&path, None).await) };
            let deleted = cluster
                .ask("revoke", SideEffect::Writes, patience, deleted)
                .await?;
            return Ok(if deleted.is_some() {
                RevokeOutcome::Freed
            } else {
                RevokeOutcome::AlreadyGone
            });
        }
        let revoked = [REVOKE, &data].concat();
        let set = async {
            match link
                .client
                .set_data(&path, &revoked, Some(stat.version))
                .await
            {
                Ok(_) => Ok(true),
                // Another operator or the leader of an election has written since the read, or the
                // node is gone. Another read shows which.
                Err(Driver::BadVersion | Driver::NoNode) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if data.starts_with(REVOKE)
            || cluster
                .ask("revoke", SideEffect::Writes, patience, set)
                .await?
        {
            // The holder notices by its watch, or at the latest by its next renewal.
            let ttl = Data::of(&member, &data)
                .and_then(|data| data.ttl)
                .map(Duration::from_millis);
            return Ok(RevokeOutcome::FreeWithin(ttl.map(|ttl| ttl * 4 / 3)));
        }
    }
    Err(ERRORS.error(
        ErrorKind::Unavailable,
        "revoke",
        "the holder changed its node at each attempt; try again, or use an immediate revocation",
    ))
}

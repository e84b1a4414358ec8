//! Taking a lock from a holder that an inspection showed.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use leasehold_core::{ErrorKind, HolderRef, Mode, Result, Revocation, RevokeOutcome};

use crate::{
    connection::Cluster,
    error::{self, Effect},
    keys::EtcdKey,
};

/// What identifies one grant: its create revision and its key.
pub(crate) fn id_of(kv: &KeyValue) -> Vec<u8> {
    [format!("{}:", kv.create_revision()).as_bytes(), kv.key()].concat()
}

fn read_id(id: &[u8]) -> Option<(i64, EtcdKey)> {
    let colon = id.iter().position(|byte| *byte == b':')?;
    let revision = std::str::from_utf8(&id[..colon]).ok()?.parse().ok()?;
    Some((revision, EtcdKey::from(&id[colon + 1..])))
}

/// At once: compares the create revision and deletes. Gently: leaves a mark in the holder's
/// session, which the holder reads with its next renewal; from then on its deadline stands.
pub(crate) async fn revoke(
    cluster: &Cluster,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    let invalid = || {
        error::plain(
            ErrorKind::InvalidInput,
            "break",
            "this holder was not shown by an inspection of etcd",
        )
    };
    let (revision, key) = read_id(&holder.id).ok_or_else(invalid)?;
    let permit = matches!(holder.mode, Some(Mode::Permit { .. }));
    let directory = cluster.names.directory(&holder.key, permit)?;
    if !key.as_bytes().starts_with(&directory.start()) {
        return Err(invalid());
    }
    let patience = cluster.config.timeout;
    let still_it = Compare::create_revision(key.to_vec(), CompareOp::Equal, revision);
    if revocation == Revocation::Immediate {
        let txn = Txn::new()
            .when([still_it])
            .and_then([TxnOp::delete(key.to_vec(), None)]);
        let answer = cluster.txn("break", Effect::Writes, patience, &txn).await?;
        return Ok(if answer.succeeded() {
            RevokeOutcome::Freed
        } else {
            RevokeOutcome::AlreadyGone
        });
    }
    if !directory.read(key.as_bytes()).ours {
        return Err(error::plain(
            ErrorKind::Unsupported,
            "break",
            "another program holds it, which would not notice; it can only be broken at once",
        ));
    }
    let txn = Txn::new().when([still_it.clone()]).and_then([TxnOp::get(
        key.to_vec(),
        Some(GetOptions::new().with_keys_only()),
    )]);
    let answer = cluster.txn("break", Effect::None, patience, &txn).await?;
    let lease = match answer.op_responses().into_iter().next() {
        Some(TxnOpResponse::Get(range)) => range.kvs().first().map(KeyValue::lease),
        _ => None,
    };
    let (Some(lease), Some(mark)) = (lease, cluster.names.mark(key.as_bytes(), revision)) else {
        return Ok(RevokeOutcome::AlreadyGone);
    };
    let put = TxnOp::put(mark.to_vec(), "", Some(PutOptions::new().with_lease(lease)));
    let answer = cluster
        .txn(
            "break",
            Effect::Writes,
            patience,
            &Txn::new().when([still_it]).and_then([put]),
        )
        .await;
    match answer {
        Ok(answer) if answer.succeeded() => {}
        Err(error) if error.kind() != ErrorKind::Lost => return Err(error),
        _ => return Ok(RevokeOutcome::AlreadyGone),
    }
    let ttl = cluster.call("break", Effect::None, patience, |live| {
        let mut leases = live.lease.clone();
        async move { leases.time_to_live(lease, None).await }
    });
    // It reads the mark after a third of its TTL at the latest, and has a TTL from then on.
    let granted = ttl
        .await
        .ok()
        .and_then(|answer| u64::try_from(answer.granted_ttl()).ok());
    Ok(RevokeOutcome::FreeWithin(
        granted.map(|secs| Duration::from_secs(secs) * 4 / 3),
    ))
}

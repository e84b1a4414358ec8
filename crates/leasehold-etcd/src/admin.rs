//! Inspection and revocation: the holders of a key, its waiters, and the forced end of a lock.

use std::{collections::HashMap, time::Duration};

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse,
};
use leasehold_core::{
    ErrorKind, FencingToken, HolderRef, Inspection, LockKey, Mode, Result, Revocation,
    RevokeOutcome, WaiterRef, text::parse_exact,
};

use crate::{
    connection::Cluster,
    error::{ERRORS, SideEffect},
    keys::{Candidate, EtcdKey, KeyOwner, LockPrefix, label_of},
};

/// Returns the holders of `key` and its waiters, in the order of their queue.
pub(crate) async fn inspect(cluster: &Cluster, key: &LockKey) -> Result<Inspection> {
    let mut inspection = Inspection::default();
    let (mut leases, mut labels) = (HashMap::new(), HashMap::new());
    for permits in [false, true] {
        let lock_prefix = cluster.layout.lock_prefix(key, permits)?;
        let queue = list(cluster, &lock_prefix).await?;
        let mut writer_ahead = false;
        for (queue_key, kv) in queue.iter().enumerate() {
            let owner = lock_prefix.read(kv.key());
            let mode = mode_of(&owner, permits);
            let holds = match mode {
                Some(Mode::Permit { of }) => queue_key < of.get() as usize,
                Some(Mode::Shared) => !writer_ahead,
                _ => queue_key == 0,
            };
            writer_ahead |= !owner.shared;
            let label = match owner.candidate {
                Some(Candidate {
                    lease,
                    owner: Some(_),
                }) => session_label(cluster, lease, &mut labels).await?,
                None if owner.is_leasehold => label_of(kv.value()),
                _ => String::new(),
            };
            if !holds {
                inspection.waiters.push(WaiterRef::new(mode, label));
                continue;
            }
            let mut holder = HolderRef::new(key.clone(), id_of(kv));
            holder.mode = mode;
            holder.label = label;
            holder.token =
                (!permits).then(|| FencingToken::new(kv.create_revision().unsigned_abs()));
            holder.expires_in = expires_in(cluster, kv.lease(), &mut leases).await;
            inspection.holders.push(holder);
        }
    }
    Ok(inspection)
}

async fn list(cluster: &Cluster, lock_prefix: &LockPrefix) -> Result<Vec<KeyValue>> {
    let options = GetOptions::new()
        .with_range(lock_prefix.end())
        .with_sort(SortTarget::Create, SortOrder::Ascend);
    let start = EtcdKey::from(lock_prefix.start());
    let mut listed = cluster
        .get("inspect", cluster.config.timeout, &start, Some(options))
        .await?;
    Ok(listed.take_kvs())
}

fn mode_of(owner: &KeyOwner, permits: bool) -> Option<Mode> {
    if !owner.is_leasehold {
        return None;
    }
    match (permits, owner.of.and_then(|of| of.try_into().ok())) {
        (true, of) => of.map(|of| Mode::Permit { of }),
        (false, _) if owner.shared => Some(Mode::Shared),
        (false, _) => Some(Mode::Exclusive),
    }
}

/// Returns the label of the client of a session, which is read once per session.
async fn session_label(
    cluster: &Cluster,
    lease: i64,
    cache: &mut HashMap<i64, String>,
) -> Result<String> {
    if let Some(cached) = cache.get(&lease) {
        return Ok(cached.clone());
    }
    let key = cluster.layout.session(lease);
    let read = cluster
        .get("inspect", cluster.config.timeout, &key, None)
        .await?;
    let label = read.kvs().first().map(KeyValue::value).unwrap_or_default();
    let label = String::from_utf8_lossy(label).into_owned();
    cache.insert(lease, label.clone());
    Ok(label)
}

/// Returns the remaining time of a lease, which is read once per lease. `None` if the member does
/// not know it.
async fn expires_in(
    cluster: &Cluster,
    id: i64,
    cache: &mut HashMap<i64, Option<Duration>>,
) -> Option<Duration> {
    if let Some(cached) = cache.get(&id) {
        return *cached;
    }
    let response = cluster.call(
        "inspect",
        SideEffect::None,
        cluster.config.timeout,
        |channel| {
            let mut lease = channel.lease.clone();
            async move { lease.time_to_live(id, None).await }
        },
    );
    let remaining = response
        .await
        .ok()
        .and_then(|answer| u64::try_from(answer.ttl()).ok())
        .map(Duration::from_secs);
    cache.insert(id, remaining);
    remaining
}

/// Returns the id of one grant: its create revision and its key.
pub(crate) fn id_of(kv: &KeyValue) -> Vec<u8> {
    [format!("{}:", kv.create_revision()).as_bytes(), kv.key()].concat()
}

pub(crate) fn read_id(id: &[u8]) -> Option<(i64, EtcdKey)> {
    let colon = id.iter().position(|byte| *byte == b':')?;
    let revision = parse_exact(std::str::from_utf8(&id[..colon]).ok()?)?;
    Some((revision, EtcdKey::from(&id[colon + 1..])))
}

/// Revokes the lock of `holder`.
///
/// An immediate revocation compares the create revision and deletes the key. A graceful one leaves
/// a mark in the session of the holder, which reads it with its next renewal. From then on its
/// deadline does not move.
pub(crate) async fn revoke(
    cluster: &Cluster,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    let invalid = || {
        ERRORS.error(
            ErrorKind::InvalidInput,
            "revoke",
            "this holder was not returned by an inspection of etcd",
        )
    };
    let (revision, key) = read_id(&holder.id).ok_or_else(invalid)?;
    let permit = matches!(holder.mode, Some(Mode::Permit { .. }));
    let lock_prefix = cluster.layout.lock_prefix(&holder.key, permit)?;
    if !key.as_bytes().starts_with(&lock_prefix.start()) {
        return Err(invalid());
    }
    let timeout = cluster.config.timeout;
    let still_it = Compare::create_revision(key.to_vec(), CompareOp::Equal, revision);
    if revocation == Revocation::Immediate {
        let txn = Txn::new()
            .when([still_it])
            .and_then([TxnOp::delete(key.to_vec(), None)]);
        let answer = cluster
            .txn("revoke", SideEffect::Writes, timeout, &txn)
            .await?;
        return Ok(if answer.succeeded() {
            RevokeOutcome::Freed
        } else {
            RevokeOutcome::AlreadyGone
        });
    }
    if !lock_prefix.read(key.as_bytes()).is_leasehold {
        return Err(ERRORS.error(
            ErrorKind::Unsupported,
            "revoke",
            "another program holds the lock and would not read the mark; use an immediate revocation",
        ));
    }
    let txn = Txn::new().when([still_it.clone()]).and_then([TxnOp::get(
        key.to_vec(),
        Some(GetOptions::new().with_keys_only()),
    )]);
    let answer = cluster
        .txn("revoke", SideEffect::None, timeout, &txn)
        .await?;
    let lease = match answer.op_responses().into_iter().next() {
        Some(TxnOpResponse::Get(range)) => range.kvs().first().map(KeyValue::lease),
        _ => None,
    };
    let (Some(lease), Some(mark)) = (lease, cluster.layout.mark(key.as_bytes(), revision)) else {
        return Ok(RevokeOutcome::AlreadyGone);
    };
    let put = TxnOp::put(mark.to_vec(), "", Some(PutOptions::new().with_lease(lease)));
    let answer = cluster
        .txn(
            "revoke",
            SideEffect::Writes,
            timeout,
            &Txn::new().when([still_it]).and_then([put]),
        )
        .await;
    match answer {
        Ok(answer) if answer.succeeded() => {}
        Err(error) if error.kind() != ErrorKind::Lost => return Err(error),
        _ => return Ok(RevokeOutcome::AlreadyGone),
    }
    let ttl = cluster.call("revoke", SideEffect::None, timeout, |channel| {
        let mut leases = channel.lease.clone();
        async move { leases.time_to_live(lease, None).await }
    });
    // The holder reads the mark after a third of its TTL at the latest. Its lock then expires
    // within one TTL.
    let granted = ttl
        .await
        .ok()
        .and_then(|answer| u64::try_from(answer.granted_ttl()).ok());
    Ok(RevokeOutcome::FreeWithin(
        granted.map(|secs| Duration::from_secs(secs) * 4 / 3),
    ))
}

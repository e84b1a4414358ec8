//! Who holds a key and who waits for it.

use std::{collections::HashMap, time::Duration};

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget};
use leasehold_core::{FencingToken, HolderRef, Inspection, LockKey, Mode, Result, WaiterRef};

use crate::{
    connection::Cluster,
    error::Effect,
    keys::{Directory, EtcdKey, Member, label_of},
    revoke::id_of,
};

pub(crate) async fn inspect(cluster: &Cluster, key: &LockKey) -> Result<Inspection> {
    let mut inspection = Inspection::default();
    let mut leases = HashMap::new();
    for permits in [false, true] {
        let directory = cluster.names.directory(key, permits)?;
        let queue = list(cluster, &directory).await?;
        let mut writer_ahead = false;
        for (place, kv) in queue.iter().enumerate() {
            let member = directory.read(kv.key());
            let mode = mode_of(&member, permits);
            let holds = match mode {
                Some(Mode::Permit { of }) => place < of.get() as usize,
                Some(Mode::Shared) => !writer_ahead,
                _ => place == 0,
            };
            writer_ahead |= !member.shared;
            let label = if member.ours {
                label_of(kv.value())
            } else {
                String::new()
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

async fn list(cluster: &Cluster, directory: &Directory) -> Result<Vec<KeyValue>> {
    let options = GetOptions::new()
        .with_range(directory.end())
        .with_sort(SortTarget::Create, SortOrder::Ascend);
    let start = EtcdKey::from(directory.start());
    let mut listed = cluster
        .get("inspect", cluster.config.timeout, &start, Some(options))
        .await?;
    Ok(listed.take_kvs())
}

fn mode_of(member: &Member, permits: bool) -> Option<Mode> {
    if !member.ours {
        return None;
    }
    match (permits, member.of.and_then(|of| of.try_into().ok())) {
        (true, of) => of.map(|of| Mode::Permit { of }),
        (false, _) if member.shared => Some(Mode::Shared),
        (false, _) => Some(Mode::Exclusive),
    }
}

/// The rest of a session's life; asked once per session. `None` where the member does not know.
async fn expires_in(
    cluster: &Cluster,
    id: i64,
    known: &mut HashMap<i64, Option<Duration>>,
) -> Option<Duration> {
    if let Some(known) = known.get(&id) {
        return *known;
    }
    let asked = cluster.call("inspect", Effect::None, cluster.config.timeout, |live| {
        let mut lease = live.lease.clone();
        async move { lease.time_to_live(id, None).await }
    });
    let left = asked
        .await
        .ok()
        .and_then(|answer| u64::try_from(answer.ttl()).ok())
        .map(Duration::from_secs);
    known.insert(id, left);
    left
}

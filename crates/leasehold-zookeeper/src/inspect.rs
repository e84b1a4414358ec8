//! Reads the holders of a key and its waiters.

use futures_util::future::join;
use leasehold_core::{FencingToken, HolderRef, Inspection, LockKey, Mode, Result, WaiterRef};
use zookeeper_client::{Error as Driver, MultiReadResult, Stat};

use crate::{
    candidate::proposal,
    connection::{Cluster, Link},
    error::SideEffect,
    keys::{Directory, Member, Part},
    node_data::{Data, Says, shown},
    queue::in_order,
    revoke::id_of,
};

/// The most nodes that are read in one request.
const READS: usize = 500;
/// The most bytes of their paths. A server closes the connection on a request of more than 1 MiB
/// (`jute.maxbuffer`).
const READ_BYTES: usize = 256 * 1024;

pub(crate) async fn inspect(cluster: &Cluster, key: &LockKey) -> Result<Inspection> {
    let link = cluster.shared("inspect").await?;
    let mut inspection = Inspection::default();
    for permits in [false, true] {
        let directory = cluster.names.directory(key, permits);
        let children = list(cluster, &link, &directory).await?;
        let members: Vec<_> = in_order(&children)
            .into_iter()
            .filter(|(_, member)| (member.part == Part::Permit) == permits)
            .collect();
        let read = read(cluster, &link, &directory, &members).await?;
        let mut writer_ahead = false;
        let there = members
            .iter()
            .zip(read)
            .filter_map(|(member, read)| Some((member, read?)));
        for (place, ((name, member), (data, stat))) in there.enumerate() {
            let mode = mode_of(member);
            let said = Data::of(member, &data);
            let its_turn = match mode {
                Mode::Permit { of } => place < of.get() as usize,
                Mode::Shared => !writer_ahead,
                _ => place == 0,
            };
            writer_ahead |= mode == Mode::Exclusive;
            let since = match &said {
                Some(Data {
                    says: Says::Holds { since },
                    ..
                }) => *since,
                _ => None,
            };
            // A waiter that is first holds nothing until its node has moved.
            let holds = its_turn && said.as_ref().is_none_or(|said| said.says != Says::Waits);
            let label = match said {
                Some(said) => said.label,
                None => label_of(cluster, member, &data),
            };
            if !holds {
                inspection.waiters.push(WaiterRef::new(Some(mode), label));
                continue;
            }
            let mut holder = HolderRef::new(key.clone(), id_of(&stat, name));
            holder.mode = Some(mode);
            holder.label = label;
            holder.token =
                (!permits).then(|| FencingToken::new(since.unwrap_or(stat.czxid).unsigned_abs()));
            inspection.holders.push(holder);
        }
    }
    Ok(inspection)
}

async fn list(cluster: &Cluster, link: &Link, directory: &Directory) -> Result<Vec<String>> {
    let listed = async {
        // The listing shows everything that was committed before the `sync`.
        let (sync, list) = (
            link.client.sync(directory.path()),
            link.client.list_children(directory.path()),
        );
        match join(sync, list).await.1 {
            Err(Driver::NoNode) => Ok(Vec::new()),
            listed => listed,
        }
    };
    cluster
        .ask("inspect", SideEffect::None, cluster.config.timeout, listed)
        .await
}

/// Reads the data of these nodes. `None` stands for a node that is gone.
async fn read(
    cluster: &Cluster,
    link: &Link,
    directory: &Directory,
    members: &[(&str, Member)],
) -> Result<Vec<Option<(Vec<u8>, Stat)>>> {
    let mut read = Vec::with_capacity(members.len());
    // A name has some 60 bytes, and its parent up to 3 KiB.
    let above = link.client.path().len() + directory.path().len() + 1;
    let longest = members
        .iter()
        .map(|(name, _)| above + name.len())
        .max()
        .unwrap_or(1);
    for members in members.chunks(READS.min(READ_BYTES / longest.max(1)).max(1)) {
        let answer = async {
            let mut reader = link.client.new_multi_reader();
            for (name, _) in members {
                reader.add_get_data(&directory.child(name))?;
            }
            reader.commit().await
        };
        let answer = cluster
            .ask("inspect", SideEffect::None, cluster.config.timeout, answer)
            .await?;
        read.extend(answer.into_iter().map(|result| match result {
            MultiReadResult::Data { data, stat } => Some((data, stat)),
            _ => None,
        }));
    }
    Ok(read)
}

/// Returns the label of a candidate, which is its proposal. Other nodes have none.
fn label_of(cluster: &Cluster, member: &Member, data: &[u8]) -> String {
    let proposal = proposal(member, data, cluster.names.election).unwrap_or_default();
    shown(&String::from_utf8_lossy(proposal)).to_owned()
}

fn mode_of(member: &Member) -> Mode {
    match (member.part, member.of.and_then(std::num::NonZeroU32::new)) {
        (Part::Permit, Some(of)) => Mode::Permit { of },
        (Part::Reader, _) => Mode::Shared,
        _ => Mode::Exclusive,
    }
}

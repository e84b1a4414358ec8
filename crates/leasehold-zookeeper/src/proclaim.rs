//! The proposal of a candidate that holds the lock is replaced by setting the data of its node.
//!
//! The path of the node is never used twice, so a write that was delayed anywhere fails once the
//! lock is not held any more. An operator may have asked for a revocation in the same data, and the
//! holder may not have noticed yet. A write therefore keeps the request, and replaces only the
//! version of the data that it has read.

use leasehold_core::{Result, backend::RecordWrite, session::Claim};
use tokio::sync::Mutex;
use zookeeper_client::Error as Driver;

use crate::{
    candidate::{check_proposal, version},
    connection::Link,
    error::{self, SideEffect},
    node_data::REVOKE,
    session::ZookeeperSessions,
};

const WRITE: &str = "write_record";

/// The writes of one candidate.
#[derive(Debug, Default)]
pub(crate) struct Proclaimed(Mutex<Writes>);

#[derive(Debug, Default)]
struct Writes {
    /// The last write that took effect, by its sequence, and its version.
    last: Option<(u64, u64)>,
    /// The write whose answer is missing, by its sequence, and the version of the data before it.
    unanswered: Option<(u64, i32)>,
}

impl Proclaimed {
    /// Replaces the proposal in the node at `path`, once. Returns its version, or `None` if another
    /// program has written in between. A write that clears replaces it by an empty one.
    pub(crate) async fn try_write(
        &self,
        claim: &Claim<ZookeeperSessions>,
        path: &str,
        link: &Link,
        write: &RecordWrite,
    ) -> Result<Option<u64>> {
        let handle = claim.session().handle();
        let (cluster, patience) = (&handle.cluster, handle.patience);
        let value = write.value().unwrap_or_default();
        check_proposal(value, WRITE)?;
        let mut writes = self.0.lock().await;
        if let Some((sequence, version)) = writes.last
            && sequence >= write.sequence()
        {
            return Ok(Some(version));
        }
        let read = cluster.read(WRITE, link, patience, path).await?;
        let ours = read.filter(|(_, stat)| stat.ephemeral_owner == handle.session);
        let (data, stat) = ours.ok_or_else(|| error::no_longer_held(WRITE))?;
        let (revoked, present) = match data.strip_prefix(REVOKE) {
            Some(present) => (REVOKE, present),
            None => (&[][..], &*data),
        };
        if let Some((sequence, before)) = writes.unanswered.take()
            && sequence == write.sequence()
            && stat.version != before
            && present == value
        {
            writes.last = Some((sequence, version(&stat)));
            return Ok(Some(version(&stat)));
        }
        writes.unanswered = Some((write.sequence(), stat.version));
        let next = [revoked, value].concat();
        let set = link.client.set_data(path, &next, Some(stat.version));
        let set = async {
            match set.await {
                Ok(stat) => Ok(Ok(Some(stat))),
                Err(Driver::BadVersion) => Ok(Ok(None)),
                Err(Driver::NoNode) => Ok(Err(error::no_longer_held(WRITE))),
                Err(error) => Err(error),
            }
        };
        let set = cluster
            .ask(WRITE, SideEffect::Writes, patience, set)
            .await??;
        writes.unanswered = None;
        Ok(set.map(|stat| {
            writes.last = Some((write.sequence(), version(&stat)));
            version(&stat)
        }))
    }
}

//! [`Handshake`]: the checks of each new connection.
//!
//! **etcd's gRPC proxy** sends keep-alives of its own, every third of a TTL, and answers the
//! keep-alives of its clients with the replies to its own. A client counts its deadline from the
//! moment of its request, but the lease was renewed earlier. The proxy also assigns its own watch
//! ids, which is how it is detected.
//!
//! **Another cluster** behind one of the addresses would grant locks that are held in the first
//! one.

use std::sync::OnceLock;

use etcd_client::{Error as Driver, ResponseHeader, WatchOptions};
use leasehold_core::{Error, ErrorKind};

use crate::{
    channel::Channel,
    error::{ERRORS, MemberError},
    keys::EtcdKey,
};

/// The watch id that the handshake requests. The proxy ignores it and counts from zero.
const ID: i64 = i64::MAX / 2;

/// Checks each new connection.
pub(crate) struct Handshake {
    /// A key that the user may read.
    key: EtcdKey,
    /// The cluster id of the first connection, and its address.
    cluster: OnceLock<(u64, String)>,
}

impl Handshake {
    pub(crate) fn new(key: EtcdKey) -> Self {
        Self {
            key,
            cluster: OnceLock::new(),
        }
    }

    /// Checks that a member of the cluster answers.
    ///
    /// # Errors
    /// - Returns [`ErrorKind::Unsupported`] for a gRPC proxy.
    /// - Returns [`ErrorKind::InvalidInput`] for a member of another cluster.
    pub(crate) async fn check(
        &self,
        channel: &Channel,
        operation: &'static str,
        address: &str,
    ) -> Result<(), MemberError> {
        let (watch, cluster) = self
            .request(channel)
            .await
            .map_err(|error| MemberError::from_driver(error, operation, address))?;
        if watch.is_some_and(|id| id != ID) {
            return Err(MemberError::fatal(proxy(operation, address)));
        }
        let Some(cluster) = cluster else {
            return Ok(());
        };
        let (first, known_at) = self.cluster.get_or_init(|| (cluster, address.to_owned()));
        if cluster == *first {
            Ok(())
        } else {
            Err(MemberError::fatal(another_cluster(
                operation, address, known_at,
            )))
        }
    }

    /// Returns the id of a watch, unless the watch was refused, and the id of the cluster.
    async fn request(&self, channel: &Channel) -> Result<(Option<i64>, Option<u64>), Driver> {
        let mut watches = channel.watch.clone();
        let mut stream = watches
            .watch(
                self.key.to_vec(),
                Some(WatchOptions::new().with_watch_id(ID)),
            )
            .await?;
        let Some(answer) = stream.message().await? else {
            return Ok((None, None));
        };
        // A watch that is refused has no id. The next request reports the reason.
        let watch = (!answer.canceled()).then(|| answer.watch_id());
        Ok((watch, answer.header().map(ResponseHeader::cluster_id)))
    }
}

fn proxy(operation: &'static str, address: &str) -> Error {
    let message = format!(
        "{address} is etcd's gRPC proxy (`etcd grpc-proxy`), whose replies to keep-alives do not show until when a lock is \
         held; connect to the members themselves, or through `etcd gateway`"
    );
    ERRORS.error(ErrorKind::Unsupported, operation, message)
}

fn another_cluster(operation: &'static str, address: &str, known_at: &str) -> Error {
    let message = format!(
        "{address} belongs to another cluster than {known_at}, where a held lock is free; name members of one cluster, and \
         connect again after a cluster was replaced or restored from a backup"
    );
    ERRORS.error(ErrorKind::InvalidInput, operation, message)
}

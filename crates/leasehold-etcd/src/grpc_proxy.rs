//! Detects etcd's gRPC proxy, behind which no deadline is safe.
//!
//! The proxy sends keep-alives of its own, every third of a TTL, and answers those of its clients with the answers to its own.
//! The client counts its deadline from the moment it asked, but the lease was renewed earlier. The proxy also numbers
//! watches by itself, which is how it is detected.

use etcd_client::{Error as Driver, WatchOptions};
use leasehold_core::{Error, ErrorKind};

use crate::{error, keys::EtcdKey, member::Live};

/// The id that the watch for the detection asks for. The proxy ignores it, and counts from zero.
const ID: i64 = i64::MAX / 2;

/// Returns whether a proxy answers on this connection.
pub(crate) async fn answers(live: &Live, key: &EtcdKey) -> Result<bool, Driver> {
    let mut watches = live.watch.clone();
    let mut stream = watches.watch(key.to_vec(), Some(WatchOptions::new().with_watch_id(ID))).await?;
    let answer = stream.message().await?;
    // A watch that is refused has no id. The next request reports why it is refused.
    Ok(answer.is_some_and(|answer| !answer.canceled() && answer.watch_id() != ID))
}

/// The error of a connection to a proxy.
pub(crate) fn refusal(operation: &'static str, endpoint: &str) -> Error {
    error::plain(
        ErrorKind::Unsupported,
        operation,
        format!(
            "{endpoint} is etcd's gRPC proxy (`etcd grpc-proxy`), whose answers to keep-alives do not say until when a lock is \
             held; connect to the members themselves, or through `etcd gateway`"
        ),
    )
}

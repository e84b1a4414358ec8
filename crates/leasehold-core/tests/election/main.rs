//! Elections, as candidates and observers see them.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod campaign;
mod lead;
mod observer;
mod scripted;
mod standby;

use std::time::Duration;

use leasehold_core::{Leader, Leaders, LockClient};
use tokio::time::timeout;

/// A limit that only a hang reaches, on paused time.
pub(crate) const SOON: Duration = Duration::from_secs(3600);

/// Returns the value of the leader as text.
pub(crate) fn value(leader: Option<Leader>) -> Option<String> {
    Some(String::from_utf8(leader?.value).unwrap())
}

pub(crate) async fn leader(client: &LockClient) -> Option<String> {
    value(client.election("e").leader().await.unwrap())
}

pub(crate) async fn next(leaders: &mut Leaders) -> Option<String> {
    value(timeout(SOON, leaders.next()).await.unwrap().unwrap())
}

pub(crate) fn some(value: &str) -> Option<String> {
    Some(value.to_owned())
}

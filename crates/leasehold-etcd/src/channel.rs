//! [`Channel`]: the driver's clients on one connection.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use etcd_client::{Client, KvClient, LeaseClient, WatchClient};
use tokio::time::Instant;

use crate::error::MemberError;

/// The largest response that is read. The queue of one lock can be larger than the driver's default
/// of 4 MiB.
const MAX_RESPONSE_SIZE: usize = 16 << 20;

/// The driver's clients of one connection.
pub(crate) struct Channel {
    pub(crate) client: Client,
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) watch: WatchClient,
    /// The number of tokens that were requested.
    pub(crate) tokens: AtomicU64,
    /// Serializes authentications. Has the start and the error of the last one if it failed.
    pub(crate) authenticating: tokio::sync::Mutex<Option<(Instant, MemberError)>>,
}

impl Channel {
    pub(crate) fn new(client: &Client) -> Arc<Self> {
        Arc::new(Self {
            client: client.clone(),
            kv: client
                .kv_client()
                .max_decoding_message_size(MAX_RESPONSE_SIZE),
            lease: client.lease_client(),
            watch: client
                .watch_client()
                .max_decoding_message_size(MAX_RESPONSE_SIZE),
            tokens: AtomicU64::new(0),
            authenticating: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the number of the present token, to compare it with a later one.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.load(Ordering::Acquire)
    }
}

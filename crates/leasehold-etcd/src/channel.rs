//! [`Channel`]: the driver's clients on one connection.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use etcd_client::{Client, KvClient, LeaseClient, WatchClient};
use tokio::time::Instant;

use crate::error::MemberError;

/// The longest answer that is read. The driver's default of 4 MiB is less than the queue of one
/// lock can be.
const MAX_RESPONSE_SIZE: usize = 16 << 20;

/// The driver's clients of one connection.
pub(crate) struct Channel {
    pub(crate) client: Client,
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) watch: WatchClient,
    /// How many tokens it has had.
    pub(crate) tokens: AtomicU64,
    /// One authentication at a time. Its failure, and when it was begun.
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

    /// Returns which token it has, to compare with a later one.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.load(Ordering::Acquire)
    }
}

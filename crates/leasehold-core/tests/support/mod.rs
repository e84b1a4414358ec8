//! What the tests of the client share.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use leasehold_core::{LockClient, TestClock, Ttl};
use leasehold_local::MemoryBackend;

/// A client of memory whose clock is tokio's, which the test pauses.
pub fn simulated() -> (LockClient, Arc<TestClock>) {
    let clock = Arc::new(TestClock::new());
    let backend = MemoryBackend::with_clock(clock.clone());
    (LockClient::builder(backend).with_clock(clock.clone()).build(), clock)
}

/// Two clients of one memory, as two processes are.
pub fn two_processes() -> (LockClient, LockClient) {
    let clock = Arc::new(TestClock::new());
    let backend = Arc::new(MemoryBackend::with_clock(clock.clone()));
    let client = || LockClient::builder(Arc::clone(&backend)).with_clock(clock.clone()).build();
    (client(), client())
}

/// A TTL of whole seconds.
pub fn secs(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

/// Lets every other task run until nothing more happens at this moment.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

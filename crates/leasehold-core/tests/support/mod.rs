//! Helpers shared by the tests of the client.

#![allow(dead_code, reason = "each test file uses its part")]

/// Implements the methods of a lease that report its state by those of the lease in a field.
macro_rules! forward_lease_state {
    ($inner:tt) => {
        fn fencing_token(&self) -> Option<leasehold_core::FencingToken> {
            self.$inner.fencing_token()
        }

        fn valid_until(&self) -> leasehold_core::Deadline {
            self.$inner.valid_until()
        }

        fn keep_alive(&self) -> leasehold_core::backend::KeepAlive {
            self.$inner.keep_alive()
        }
    };
}

pub(crate) mod flaky;
pub(crate) mod spy;

use std::sync::Arc;

use leasehold_core::{LockClient, TestClock, Ttl};
use leasehold_local::MemoryBackend;

/// Returns a client of an in-memory backend on tokio's clock, which the test pauses.
pub(crate) fn simulated() -> (LockClient, Arc<TestClock>) {
    let clock = Arc::new(TestClock::new());
    let backend = MemoryBackend::with_clock(clock.clone());
    (
        LockClient::builder(backend)
            .with_clock(clock.clone())
            .build(),
        clock,
    )
}

/// Returns a client of a watched in-memory backend.
pub(crate) fn spied() -> (LockClient, Arc<spy::Watched>, Arc<TestClock>) {
    let clock = Arc::new(TestClock::new());
    let backend = spy::Spy::new(MemoryBackend::with_clock(clock.clone()));
    let watched = Arc::clone(&backend.watched);
    (
        LockClient::builder(backend)
            .with_clock(clock.clone())
            .build(),
        watched,
        clock,
    )
}

/// Returns two clients of one in-memory backend, as two processes have them.
pub(crate) fn two_processes() -> (LockClient, LockClient) {
    let clock = Arc::new(TestClock::new());
    let backend = Arc::new(MemoryBackend::with_clock(clock.clone()));
    let client = || {
        LockClient::builder(Arc::clone(&backend))
            .with_clock(clock.clone())
            .build()
    };
    (client(), client())
}

/// Returns a TTL of whole seconds.
pub(crate) fn secs(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

/// Lets all other tasks run until none of them can continue.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

//! Helpers shared by the tests.

use std::time::Duration;

use leasehold_integration::{leftovers, server::RedisServer};

/// Asserts that within `patience` no lock and no waiter is left on this server.
#[track_caller]
pub(crate) fn nothing_left(server: &RedisServer, patience: Duration) {
    leftovers::nothing_left(patience, || leftovers::redis(server)).unwrap();
}

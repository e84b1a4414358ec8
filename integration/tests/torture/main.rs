//! Chaos on every backend with locks, elections and scheduled work, odd input, and servers that are
//! down at the start. The fault suite (`faults`) has the single faults that every backend must
//! survive.
//!
//! Randomized tests print their seed; `LEASEHOLD_SEED` repeats a run.

mod bad_input;
mod chaos;
mod every_backend;
mod local_replica;
mod once;
mod support;
mod unconnected;
mod zookeeper;

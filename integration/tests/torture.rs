//! Chaos on every backend, and faults that are particular to one backend. The fault suite
//! (`faults`) has those that every backend must survive.
//!
//! Randomized tests print their seed; `LEASEHOLD_SEED` repeats a run.

#[path = "torture/bad_input.rs"]
mod bad_input;
#[path = "torture/chaos.rs"]
mod chaos;
#[path = "torture/every_backend/mod.rs"]
mod every_backend;
#[path = "torture/files.rs"]
mod files;
#[path = "torture/many.rs"]
mod many;
#[path = "torture/postgres/mod.rs"]
mod postgres;
#[path = "torture/restart.rs"]
mod restart;
#[path = "torture/support.rs"]
mod support;
#[path = "torture/unconnected.rs"]
mod unconnected;
#[path = "torture/zookeeper.rs"]
mod zookeeper;

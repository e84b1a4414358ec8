//! Faults of real servers and real processes.
//!
//! Randomized tests print their seed; `LEASEHOLD_SEED` repeats a run.

#[path = "torture/bad_input.rs"]
mod bad_input;
#[path = "torture/chaos.rs"]
mod chaos;
#[path = "torture/closing.rs"]
mod closing;
#[path = "torture/crowd.rs"]
mod crowd;
#[path = "torture/dropped.rs"]
mod dropped;
#[path = "torture/every_backend/mod.rs"]
mod every_backend;
#[path = "torture/files.rs"]
mod files;
#[path = "torture/killed.rs"]
mod killed;
#[path = "torture/many.rs"]
mod many;
#[path = "torture/outage.rs"]
mod outage;
#[path = "torture/partition.rs"]
mod partition;
#[path = "torture/postgres/mod.rs"]
mod postgres;
#[path = "torture/release.rs"]
mod release;
#[path = "torture/restart.rs"]
mod restart;
#[path = "torture/stopped.rs"]
mod stopped;
#[path = "torture/support.rs"]
mod support;
#[path = "torture/unconnected.rs"]
mod unconnected;
#[path = "torture/zookeeper.rs"]
mod zookeeper;

//! Redlock on real servers, and its behaviour when they fail.

#[path = "redlock/clock.rs"]
mod clock;
#[path = "redlock/kept.rs"]
mod kept;
#[path = "redlock/killed.rs"]
mod killed;
#[path = "redlock/maintenance.rs"]
mod maintenance;
#[path = "redlock/memory.rs"]
mod memory;
#[cfg(all(feature = "etcd", feature = "postgres"))]
#[path = "redlock/mixed.rs"]
mod mixed;
#[path = "redlock/older.rs"]
mod older;
#[path = "redlock/opening.rs"]
mod opening;
#[path = "redlock/split.rs"]
mod split;
#[path = "redlock/stopped.rs"]
mod stopped;
#[path = "redlock/support.rs"]
mod support;
#[path = "redlock/write_back.rs"]
mod write_back;

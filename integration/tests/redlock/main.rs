//! Redlock on real servers, and its behaviour when they fail.

mod clock;
mod kept;
mod killed;
mod maintenance;
mod memory;
#[cfg(all(feature = "etcd", feature = "postgres"))]
mod mixed;
mod older;
mod opening;
mod split;
mod stopped;
mod support;
mod write_back;

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
mod together;
mod write_back;

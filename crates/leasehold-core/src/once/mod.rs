//! Work that runs once per occurrence, whatever the clocks of the replicas.
//!
//! [`Once`] is the handle, and [`LockClient::once`](crate::LockClient::once) creates it.
//!
//! A lock alone does not make work run once: if a quick run ends before a slow clock fires, the
//! second replica acquires the lock and runs the work again. Here a run is identified by the
//! instant for which it was [scheduled](Schedule), and the [record](crate::Record) beside the lock
//! keeps the decisions.

#[cfg(feature = "cron")]
mod cron;
mod decide;
mod format;
mod handle;
mod history;
#[cfg(test)]
mod model;
mod occurrence;
mod policies;
mod run_state;
mod runner;
mod schedule;
mod serve;
mod state;
mod turn;
mod unix_millis;

#[cfg(feature = "cron")]
pub use cron::Cron;
pub use handle::Once;
pub use history::{History, RunInfo};
pub use occurrence::Occurrence;
pub use policies::{Missed, Overlap, Retry};
pub use run_state::RunState;
pub use schedule::{Every, Schedule};
pub use turn::{Run, Turn};

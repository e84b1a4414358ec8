//! Work that runs once per occurrence, whatever the clocks of the replicas.
//!
//! A lock alone does not make work run once: if a quick run ends before a slow clock fires, the
//! second replica gets the lock and runs again. Here a run is identified by the instant for which it
//! was [scheduled](Schedule), and the record beside the lock keeps what has been decided.
#![cfg_attr(
    feature = "cron",
    doc = "\n\nThe schedules are [`Every`] and [`Cron`], and any type that implements [`Schedule`]."
)]
#![cfg_attr(
    not(test),
    expect(dead_code, reason = "the client calls it from the next change on")
)]

#[cfg(feature = "cron")]
mod cron;
mod decide;
mod format;
mod history;
#[cfg(test)]
mod model;
mod occurrence;
mod policies;
mod schedule;
mod state;
mod unix_millis;

#[cfg(feature = "cron")]
pub use cron::Cron;
pub use history::{History, RunInfo, RunState};
pub use occurrence::Occurrence;
pub use policies::{Missed, Overlap, Retry};
pub use schedule::{Every, Schedule};

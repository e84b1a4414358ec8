//! Locks within one process: [`MemoryBackend`].

mod admin;
mod backend;
mod error;
mod grant;
mod holders;
mod lease;
mod lock_entry;
mod quorum;
mod record_entry;
mod records;
mod state;
mod table;
mod waiters;
mod wall_clock;

pub use self::{backend::MemoryBackend, lease::MemoryLease};

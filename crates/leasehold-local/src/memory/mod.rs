//! Locks within one process: [`MemoryBackend`].

mod admin;
mod backend;
mod error;
mod grant;
mod holders;
mod lease;
mod lock_entry;
mod quorum;
mod state;
mod table;
mod waiters;

pub use self::{backend::MemoryBackend, lease::MemoryLease};

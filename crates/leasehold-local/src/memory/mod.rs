//! Locks within one process: [`MemoryBackend`].

mod backend;
mod grant;
mod holders;
mod lease;
mod node;
mod slot;
mod table;
mod waiter;

pub use self::{backend::MemoryBackend, lease::MemoryLease};

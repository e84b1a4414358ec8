//! Locks within one process: [`MemoryBackend`].

mod backend;
mod grant;
mod holders;
mod lease;
mod node;
mod waiter;
mod slot;
mod table;

pub use self::{backend::MemoryBackend, lease::MemoryLease};

//! Locks within one process: [`MemoryBackend`].

mod backend;
mod grant;
mod holders;
mod lease;
mod node;
mod place;
mod slot;
mod table;

pub use self::{backend::MemoryBackend, lease::MemoryLease};

//! Locks between the processes of one host: [`FileBackend`].

mod access;
mod admin;
mod backend;
mod config;
mod directory;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod identity;
mod keys;
mod last_grant;
mod lease;
mod lock_dir;
mod locked_file;
mod locked_files;
mod pending_lock;
mod permit;
mod record;
mod shadow;
mod waiter_marker;
mod waiters;

pub use self::{backend::FileBackend, config::FileConfig, lease::FileLease};

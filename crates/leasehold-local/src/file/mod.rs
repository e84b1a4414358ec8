//! Locks between the processes of one host: [`FileBackend`].

mod access;
mod acquire;
mod backend;
mod config;
mod directory;
mod error;
mod identity;
mod inspect;
mod lease;
mod locked_files;
mod name;
mod permit;
mod record;
mod shadow;
mod waiter_marker;
mod watch;

pub use self::{backend::FileBackend, config::FileConfig, lease::FileLease};

//! Locks between the processes of one host: [`FileBackend`].

mod access;
mod backend;
mod config;
mod acquire;
mod directory;
mod error;
mod locked_files;
mod identity;
mod inspect;
mod lease;
mod name;
mod permit;
mod record;
mod shadow;
mod waiter_marker;
mod watch;

pub use self::{backend::FileBackend, config::FileConfig, lease::FileLease};

//! Locks between the processes of one host: [`FileBackend`].

mod access;
mod backend;
mod config;
mod contender;
mod directory;
mod error;
mod hold;
mod identity;
mod inspect;
mod lease;
mod name;
mod permit;
mod record;
mod shadow;
mod sign;
mod watch;

pub use self::{backend::FileBackend, config::FileConfig, lease::FileLease};

#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod admin;
mod backend;
mod backoff;
mod batch;
mod config;
mod connection;
mod error;
mod fencing;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod hash;
mod identity;
mod job;
mod keys;
mod lease;
mod pending_lock;
mod record;
mod record_table;
mod server;
mod session;
mod session_connection;
mod settings;
mod statement;
pub mod transaction;
mod waiters;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use sqlx;

pub use crate::{
    backend::PostgresBackend,
    config::PostgresConfig,
    keys::{AdvisoryKey, KeyScheme},
};

#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod backoff;
mod revoke;
mod config;
mod connection;
mod error;
mod fencing;
mod batch;
mod hash;
mod identity;
mod inspect;
mod keys;
mod lease;
mod url;
mod queue;
mod server;
mod session;
mod settings;
mod statement;
pub mod transaction;
mod waiters;
mod session_conn;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use sqlx;

pub use crate::{
    backend::PostgresBackend,
    config::PostgresConfig,
    keys::{AdvisoryKey, KeyScheme},
};

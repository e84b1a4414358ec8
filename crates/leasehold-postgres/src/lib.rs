#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod backoff;
mod batch;
mod config;
mod connection;
mod error;
mod fencing;
mod hash;
mod identity;
mod inspect;
mod keys;
mod lease;
mod queue;
mod revoke;
mod server;
mod session;
mod session_conn;
mod settings;
mod statement;
pub mod transaction;
mod url;
mod waiters;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use sqlx;

pub use crate::{
    backend::PostgresBackend,
    config::PostgresConfig,
    keys::{AdvisoryKey, KeyScheme},
};

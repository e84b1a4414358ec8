#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod backoff;
mod breaking;
mod config;
mod connection;
mod error;
mod fencing;
mod gather;
mod hash;
mod identity;
mod inspect;
mod keys;
mod lease;
mod location;
mod queue;
mod server;
mod session;
mod settings;
mod statement;
pub mod transaction;
mod wake;
mod wire;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use sqlx;

pub use crate::{
    backend::PostgresBackend,
    config::PostgresConfig,
    keys::{AdvisoryKey, KeyScheme},
};

#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod batch;
mod batcher;
mod cleanup;
mod commands;
mod config;
mod conn;
mod connection;
mod error;
mod handshake;
mod inspect;
mod keys;
mod lease;
mod marker;
mod node;
mod node_state;
mod notification_backoff;
mod redlock;
mod reply;
mod revoke;
mod scripts;
mod stream;
mod url;
mod value;
mod vote;
mod waiters;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use redis;

pub use crate::{
    backend::RedisBackend,
    config::{NotificationMode, RedisConfig},
    redlock::{redlock, redlock_provisional_capabilities},
};
